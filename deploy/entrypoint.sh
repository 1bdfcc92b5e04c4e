#!/usr/bin/env bash
# Start Triton as every deployment of this repository wants it. Arguments are options for tritonserver; of an option that
# is given twice the last one counts.
set -euo pipefail

repository=${DEEPLAB_MODEL_REPOSITORY:-/models}

# Triton would serve an empty folder, and call itself ready.
if [[ $repository != *://* ]] && ! compgen -G "$repository/*/config.pbtxt" >/dev/null; then
    echo "entrypoint.sh: error: $repository has no models; fill it with build_models.py --model-repository," \
        "or set DEEPLAB_MODEL_REPOSITORY" >&2
    exit 2
fi

# deeplabv3/cpus.py says why, and a test compares the flags.
if grep -qs 'string_value: "int8"' "$repository"/*/config.pbtxt &&
    ! grep -qwE '^flags.* (amx_int8|avx512_vnni|avx_vnni)' /proc/cpuinfo; then
    echo "entrypoint.sh: error: $repository has an int8 model, which needs a CPU with VNNI or AMX; run it on another" \
        "machine, or build_models.py with --precision fp32" >&2
    exit 2
fi

# NVIDIA's entry point has run it and exported what it sets; each start of a Python model's process would run it again.
unset BASH_ENV
# deeplabv3/embedded/layout.py says why; a test compares the values.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-33554432}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-134217728}
# OpenMP by itself counts the machine's cores, not those of a container's quota.
if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    quota=max period=
    if [[ -r /sys/fs/cgroup/cpu.max ]]; then
        read -r quota period </sys/fs/cgroup/cpu.max || true
    elif [[ -r /sys/fs/cgroup/cpu/cpu.cfs_quota_us ]]; then # cgroup v1, where no quota is -1
        quota=$(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us)
        period=$(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us)
    fi
    if [[ $quota =~ ^[1-9][0-9]*$ && $period =~ ^[1-9][0-9]*$ ]]; then
        export OMP_NUM_THREADS=$(((quota + period - 1) / period))
    fi
fi

# deeplabv3/embedded/limits.py says why, and a test compares the value, which is in KiB.
stack=1966080
overcommit=$(cat /proc/sys/vm/overcommit_memory || true)
if [[ $overcommit != 2 && $(ulimit -Sv) == unlimited ]]; then
    most=$(ulimit -Hs)
    if [[ $most == unlimited ]] || ((most > stack)); then
        most=$stack
    fi
    if [[ $(ulimit -Ss) == unlimited ]] || (($(ulimit -Ss) < most)); then
        ulimit -Ss "$most"
    fi
fi
if [[ $(ulimit -Ss) == unlimited ]] || (($(ulimit -Ss) < stack)); then
    echo "entrypoint.sh: warning: a thread's stack is limited to $(ulimit -Ss) KiB, so that one form-encoded request of half" \
        "of it may end the server; allow $stack (docker run --ulimit stack=$((stack * 1024)), no 'ulimit -v'," \
        "vm.overcommit_memory 0 or 1)" >&2
fi
ulimit -Sn "$(ulimit -Hn)"

# Nobody is told the key: Triton has no other way to switch these interfaces off.
key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
closed="shared-memory,model-repository,trace,logging:deeplab-key=$key"

# What a killed server leaves in /dev/shm outlives its container in a pod, and so does what one with a dead model leaves.
# Each server's files have a name of their own, and a lock that it and its models' processes hold while they live.
exec {guard}</dev/shm/ # nobody takes a new server's lock for a dead one's before it is held
flock "$guard"
for lock in /dev/shm/deeplab_*.lock; do
    if [[ -e $lock ]] && flock --nonblock "$lock" true; then
        rm -f "${lock%.lock}"*
    fi
done
lock=$(mktemp /dev/shm/deeplab_XXXXXXXX.lock)
exec {held}<"$lock"
flock --shared "$held"
exec {guard}>&-
region=$(basename "$lock" .lock)_

pools=()
# It hangs where the driver does.
listed=$(timeout -k 5 30 nvidia-smi --list-gpus 2>/dev/null) || {
    code=$?
    if ((code == 124 || code == 137)); then
        echo "entrypoint.sh: warning: nvidia-smi gave no answer in 30 s, so that no GPU gets a memory pool; look after the" \
            "driver: 'nvidia-smi' and 'dmesg' on the host" >&2
        listed=
    fi
}
gpus=$(grep -c '^GPU ' <<<"$listed" || true)
for ((gpu = 0; gpu < gpus; gpu++)); do
    pools+=("--cuda-memory-pool-byte-size=$gpu:1073741824")
done
if ((gpus)); then
    pools+=(--pinned-memory-pool-byte-size=1073741824)
fi

tracing=()
if [[ -n ${DEEPLAB_TRACE_URL:-} ]]; then
    tracing=(
        --trace-config=mode=opentelemetry
        --trace-config=level=TIMESTAMPS
        "--trace-config=rate=${DEEPLAB_TRACE_RATE:-1}"
        "--trace-config=opentelemetry,url=$DEEPLAB_TRACE_URL"
        # Triton's own name for a service is the same for every server.
        "--trace-config=opentelemetry,resource=service.name=${OTEL_SERVICE_NAME:-deeplab-triton}"
        "--trace-config=opentelemetry,resource=service.instance.id=$HOSTNAME"
    )
fi

exec tritonserver \
    "--model-repository=$repository" \
    --model-control-mode=none \
    "--http-restricted-api=$closed" \
    "--grpc-restricted-protocol=$closed" \
    "--backend-config=python,shm-region-prefix-name=$region" \
    "${pools[@]}" \
    "${tracing[@]}" \
    "$@"
