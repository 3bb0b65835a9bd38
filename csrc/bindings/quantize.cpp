#include "cpu/quantize.h"

#include "bindings/torch_glue.h"
