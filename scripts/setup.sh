# Sourced by the scripts beside it: a virtual environment in .venv, with what the caller names; may be repeated.
# CUTLAYER_TORCH=cpu|cuda|skip decides which torch: the CPU build, the platform's usual one, or the one already there.
# CUTLAYER_VENV=DIR puts the environment elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${CUTLAYER_VENV:-.venv}
PYTHON=${PYTHON:-python3}

same_build() {  # pip keeps the torch that is there, whichever build is asked for
    local build
    build=$("$VENV/bin/python" -c 'import torch; print("cuda" if torch.version.cuda else "cpu" if "+cpu" in torch.__version__ else "")' \
        2>/dev/null) || return 0
    case "$build ${CUTLAYER_TORCH:-cpu}" in
        "cpu cuda" | "cuda cpu")
            echo "CUTLAYER_TORCH=${CUTLAYER_TORCH:-cpu}, but $VENV has torch for $build: delete $VENV and start again, or keep it" \
                "with CUTLAYER_TORCH=$build" >&2
            return 1 ;;
    esac
}

setup() {  # setup EXTRAS...: install the project with these extras, unless it is there already
    local extras=$1 stamp
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "cutlayer needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
        exit 2
    fi
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then  # one that was interrupted has a python, and no pip yet
        if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2
            exit 2
        fi
        "$PYTHON" -m venv "$VENV"
    fi
    stamp="${CUTLAYER_TORCH:-cpu} $(cat pyproject.toml constraints.txt | cksum)"
    case "$(cat "$VENV/.cutlayer" 2>/dev/null)" in
        "$extras $stamp" | "[dev] $stamp") return ;;  # the extras of development hold everything
    esac
    case " $(cat "$VENV/.cutlayer" 2>/dev/null) " in
        *" ${CUTLAYER_TORCH:-cpu} "*) ;;  # whichever build was to be had then
        *) same_build || exit 2 ;;
    esac
    echo "Installing cutlayer and its libraries into $VENV (torch, scikit-learn, matplotlib, ...: about 400 MB to download"
    echo "with the CPU build of torch, 1.6 GB on disk; some minutes the first time)."
    local constraint=(-c constraints.txt) index=()
    case "${CUTLAYER_TORCH:-cpu}" in
        cpu)
            # the CPU build comes from torch's own index where that can be reached, else from the usual one
            if ! "$VENV/bin/python" -c 'import torch' 2>/dev/null && [ -z "${CUTLAYER_OFFLINE:-}" ] && "$VENV/bin/python" - <<'EOF'
import sys, urllib.request
try:
    urllib.request.urlopen("https://download.pytorch.org/whl/cpu/", timeout=5)
except Exception:
    sys.exit(1)
EOF
            then
                index=(--extra-index-url https://download.pytorch.org/whl/cpu)
            fi ;;
        cuda) constraint=() ;;
        skip)
            constraint=()
            "$VENV/bin/python" -c 'import torch' 2>/dev/null || { echo "CUTLAYER_TORCH=skip, but $VENV has no torch: install it there first" >&2; exit 2; } ;;
        *) echo "CUTLAYER_TORCH=$CUTLAYER_TORCH: choose cpu, cuda or skip" >&2; exit 2 ;;
    esac
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${index[@]}" "${constraint[@]}" -e ".$extras"
    echo "$extras $stamp" > "$VENV/.cutlayer"
}
