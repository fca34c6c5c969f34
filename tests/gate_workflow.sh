#!/usr/bin/env bash
# What a team does with the gate and the bundle, from the first baseline to the device.
#
#     gate_workflow.sh ADVPRUNE BARE_PYTHON SOURCE      # in an empty folder
#
# ADVPRUNE is the command, BARE_PYTHON an interpreter with numpy and onnxruntime alone, SOURCE the
# checkout: the gate runs from there and installs nothing.
set -euo pipefail
advprune=$1 bare=$2 source=$3
unset CI
said=$PWD/said.txt
settings=(--method magnitude --sparsity 0.9 --quantize ptq --set attack_steps=4 --set standard.epochs=3
  --set adversarial.epochs=8 --set prune.epochs=1 --set finetune.epochs=8 --set verify.steps=10
  --set verify.restarts=1 --set verify.queries=20 --set verify.fmn=10 --set verify.health=20)

# ends CODE COMMAND...: what it says, if it ends with this code; everything is over if not.
ends() {
  local wanted=$1 got=0
  shift
  "$@" > "$said" 2>&1 || got=$?
  cat "$said"
  if [ "$got" != "$wanted" ]; then
    echo "ended $got instead of $wanted: $*"
    exit 1
  fi
}

# make FOLDER SETTINGS...: a run, whatever it thinks of its own 8 bits.
make_run() {
  local runs=$1 code=0
  shift
  "$advprune" run --runs "$runs" "${settings[@]}" "$@" > "$said" 2>&1 || code=$?
  case "$code" in 0 | 10 | 11) ;; *) cat "$said" && exit "$code" ;; esac
}

# gate CODE RUN OPTIONS...: as a job that installs nothing.
gate() {
  local code=$1 run=$2
  shift 2
  ends "$code" env PYTHONPATH="$source" "$bare" -P -m deploy.gate "$run"/*_verify/verdicts.int8.json "$@"
}

echo "== the first baseline, made once"
make_run first
ends 12 "$advprune" gate first/latest --baseline baselines/model.json
ends 2 env CI=true "$advprune" gate first/latest --baseline baselines/model.json --update-baseline --reason first
ends 0 "$advprune" gate first/latest --baseline baselines/model.json --update-baseline --reason "first release"
ends 0 "$advprune" gate first/latest --baseline baselines/model.json --update-baseline --reason again
grep -q unchanged "$said"

echo "== an equal run passes, from another folder, to the last bit"
make_run again --baseline baselines/model.json
gate 0 again/latest --baseline baselines/model.json --out .
grep -q '"status": "PASS"' gate.json
grep -q 'drop 0.0 pp' gate.md

echo "== fewer adversarial epochs fail"
make_run weaker --set adversarial.epochs=1 --set finetune.epochs=1
gate 10 weaker/latest --baseline baselines/model.json --out .
grep -q '<failure' junit.xml
ends 10 env GITHUB_ACTIONS=true "$advprune" gate weaker/latest --baseline baselines/model.json
grep -q '^::error' "$said"
ends 10 "$advprune" gate weaker/latest --baseline baselines/model.json --update-baseline --reason "smaller"

echo "== a hundred images are too few to ship, and no comparison for all of them"
make_run first --set verify.images=100
ends 0 "$advprune" gate first/latest --baseline baselines/hundred.json --update-baseline --reason "too few"
gate 11 first/latest --baseline baselines/hundred.json --policy ship
grep -q 'to ship takes' "$said"
gate 12 first/latest --baseline baselines/model.json
grep -q 'images' "$said"

echo "== the bundle is checked on a device that has numpy and onnxruntime"
openssl genpkey -algorithm ed25519 -out key.pem
openssl pkey -in key.pem -pubout -out key.pub
ends 0 "$advprune" bundle again/latest --out shipped --sign key.pem --archive
ends 0 "$advprune" bundle unpack shipped.tar device --public-key key.pub
(cd device && ends 0 "$bare" edge_verify.py --calls 20)
ends 0 env PYTHONPATH="$source" "$bare" -P -m deploy.gate device.edge/edge.int8.json \
  --baseline device/verdicts.int8.json
ends 0 "$advprune" bundle verify device --public-key key.pub
printf 'x' >> device/labels.txt
ends 65 "$bare" device/edge_verify.py
ends 65 "$advprune" bundle verify device --public-key key.pub
