#!/usr/bin/env bash
# Tell whether the server lives, and the processes of its Python models with it: Triton starts none anew, and an ensemble
# stays ready while a step of it is dead.
#
#     alive.sh [--end PID]
#
# Exit codes: 0 all live; 1 the server says that something does not; 2 no answer in time: it starts, stops or hangs.
# --end PID: in the case of 1 ask that process to end, for where nobody else restarts what is not alive.
set -euo pipefail
shopt -s nullglob # of a repository that is no folder only the server is asked

repository=${DEEPLAB_MODEL_REPOSITORY:-/models}
server=http://127.0.0.1:${DEEPLAB_HTTP_PORT:-8000}
process=
if [[ ${1:-} == --end ]]; then
    process=$2
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
for config in "$repository"/*/config.pbtxt; do
    if grep -Eq '^[[:space:]]*(platform[[:space:]]*:[[:space:]]*"ensemble"|ensemble_scheduling)' "$config"; then
        continue
    fi
    model=$(basename "$(dirname "$config")")
    ask "/v2/models/$model/ready" "model $model"
    if [[ $answer != *' HTTP 200' ]]; then
        # Triton says the same of models that it does not know: those that were built after its start.
        ready=$answer
        ask "/v2/models/$model" "model $model"
        if [[ $answer == *' HTTP 200' ]]; then
            answer=$ready
            dead "model $model"
        fi
    fi
done
