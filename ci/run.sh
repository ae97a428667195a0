#!/usr/bin/env bash
# Lint, then the README's test command. Starts from any directory, on a machine with nothing but Rust and a C linker.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

# The scenarios use setpriv (util-linux) to start a server as an unprivileged user, and ip (iproute2) to have networks of their
# own, git names the files to lint, valgrind counts instructions, libFuzzer is C++, openssl is a client of TLS, socat of all sockets.
missing=()
command -v setpriv >/dev/null || missing+=(util-linux)
command -v ip >/dev/null || missing+=(iproute2)
command -v git >/dev/null || missing+=(git)
command -v openssl >/dev/null || missing+=(openssl)
command -v socat >/dev/null || missing+=(socat)
command -v valgrind >/dev/null || missing+=(valgrind)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v c++ >/dev/null || missing+=(g++)
if ((${#missing[@]})); then
    if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "${missing[@]}" >/dev/null
    else
        echo "missing on this machine: ${missing[*]}; install them first" >&2
        exit 1
    fi
fi
command -v cargo >/dev/null || export PATH="$HOME/.cargo/bin:$PATH"

# Where something was is enough here, and quicker to build than all that a debugger could ask.
export CARGO_PROFILE_DEV_DEBUG=line-tables-only

# Both run even when the first fails: one run shows everything that is wrong.
lint=0
cargo xtask lint || lint=$?
cargo xtask test
exit "$lint"
