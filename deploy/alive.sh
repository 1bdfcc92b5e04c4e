#!/bin/bash -p
# Check that the server and the processes of its Python models are alive. Triton does not restart such a process, and an
# ensemble stays ready while one of its steps is dead.
#
#     alive.sh [--end PID]
#
# Exit codes: 0 all are alive; 1 the server reports that it or a model is not; 2 unknown: no answer in time, because the
# server starts, stops or hangs; no model to ask about; or wrong arguments.
#
# --end PID: with exit code 1, also send SIGTERM to that process, where nothing else restarts a server that is not alive.
set -euo pipefail # and -p above: NVIDIA's images have a BASH_ENV that queries the driver, seconds at each start of bash

repository=${DEEPLAB_MODEL_REPOSITORY:-/models}
server=http://127.0.0.1:${DEEPLAB_HTTP_PORT:-8000}
process=
if (($# == 2)) && [[ $1 == --end && $2 =~ ^[1-9][0-9]*$ ]]; then
    process=$2
elif (($#)); then
    echo "usage: alive.sh [--end PID]" >&2
    exit 2
fi

ask() { # PATH NAME, sets answer
    if ! answer=$(curl --silent --show-error --noproxy '*' --max-time 5 --write-out ' HTTP %{http_code}' "$server$1" 2>&1); then
        echo "alive.sh: $2: no answer: $answer" >&2
        exit 2
    fi
}

dead() { # NAME
    echo "alive.sh: $1 is not alive: $answer" >&2
    if [[ -n $process ]]; then
        kill -TERM "$process"
    fi
    exit 1
}

ask /v2/health/live server
if [[ $answer != *' HTTP 200' ]]; then
    dead server
fi
# Reading a network share whose server is gone would block forever.
ensemble='^[[:space:]]*(platform[[:space:]]*:[[:space:]]*"ensemble"|ensemble_scheduling)'
mapfile -t configs < <(timeout -s KILL 5 find -L "$repository" -mindepth 2 -maxdepth 2 -name config.pbtxt \
    -exec grep -LE "$ensemble" {} + 2>/dev/null)
models=()
for config in "${configs[@]}"; do
    models+=("$(basename "$(dirname "$config")")")
done
if ((${#models[@]} == 0)); then
    # A bucket, or a folder whose storage is unavailable. That is no reason to end a server that has its models in
    # memory: check the models that the server lists, ensembles too.
    ask /v2/models/stats "list of models"
    mapfile -t models < <(grep -o '"name":"[^"]*"' <<<"$answer" | cut -d'"' -f4 | sort -u)
    if ((${#models[@]} == 0)) && [[ $repository != *://* ]]; then
        echo "alive.sh: $repository has no models, and the server lists none: $answer" >&2
        exit 2
    fi
fi
for model in "${models[@]}"; do
    ask "/v2/models/$model/ready" "model $model"
    if [[ $answer != *' HTTP 200' ]]; then
        # Triton gives the same answer for models that it does not know, because they were built after its start.
        ready=$answer
        ask "/v2/models/$model" "model $model"
        if [[ $answer == *' HTTP 200' ]]; then
            answer=$ready
            dead "model $model"
        fi
    fi
done
