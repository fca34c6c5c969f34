"""A `tensorrt` that runs nothing and permits only what the published bindings permit."""
