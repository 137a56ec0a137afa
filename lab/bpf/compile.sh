#!/bin/sh
# Compiles bypass.c to bypass.o, or to standard output if the argument is `-`. Needs Debian 12's clang (14) and linux-libc-dev. The
# test of lab/src/node/bpf.rs compares the committed object with the result.
set -eu
cd "$(dirname "$0")"
output=${1:-bypass.o}
exec clang -O2 -g0 -target bpf -I"/usr/include/$(uname -m)-linux-gnu" -c bypass.c -o "$output"
