"""The operators that classifiers are made of.

Not among them: what runs graphs, draws numbers, handles text, or makes tensors whose size depends
on their values or that need far more room than their results.
"""

_ELEMENTWISE = """
Abs Add And BatchNormalization Cast CastLike Ceil Celu Clip Cos DequantizeLinear Div Dropout Elu
Equal Erf Exp Floor Gelu Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
InstanceNormalization LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
LpNormalization Max Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pow
QuantizeLinear RMSNormalization Reciprocal Relu Round Selu Sigmoid Sign Sin Softmax Softplus
Softsign Sqrt Sub Sum Swish Tanh ThresholdedRelu Where Xor
"""
_SUMS = """
ArgMax ArgMin AveragePool Conv ConvInteger ConvTranspose CumSum DynamicQuantizeLinear Gemm
GlobalAveragePool GlobalMaxPool LpPool MatMul MatMulInteger MaxPool QLinearConv QLinearMatMul
ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare TopK
"""
_MOVES = """
Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND Pad Range
Reshape Resize ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose
Trilu Unsqueeze
"""
OPERATORS = frozenset(f"{_ELEMENTWISE} {_SUMS} {_MOVES}".split())
