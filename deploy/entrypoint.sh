#!/usr/bin/env bash
# Start Triton with the settings that all deployments share. Arguments are options for tritonserver, which uses the last
# of two equal ones.
set -euo pipefail

repository=${DEEPLAB_MODEL_REPOSITORY:-/models}

# Triton would serve an empty folder and report that it is ready.
if [[ $repository != *://* ]] && ! compgen -G "$repository/*/config.pbtxt" >/dev/null; then
    echo "entrypoint.sh: error: $repository has no models; build them with build_models.py --model-repository" \
        "$repository, or set DEEPLAB_MODEL_REPOSITORY to a folder that has models" >&2
    exit 2
fi

# deeplabv3/cpus.py explains why; a test compares the flags.
cpu=" $(grep -m 1 ^flags /proc/cpuinfo || true) "
has() {
    local flag
    for flag; do [[ $cpu == *" $flag "* ]] || return; done
}
refuse() {
    echo "entrypoint.sh: error: $1: $2 needs a CPU with $3; use another machine," \
        "or build the models with build_models.py --precision fp32" >&2
    exit 2
}
for config in "$repository"/*/config.pbtxt; do
    if [[ ! -f $config ]] || grep -qE '^[^#]*kind: *KIND_GPU' "$config"; then continue; fi
    precision=$(tr -d '[:space:]' <"$config" | sed -nE 's/.*key:"precision"value:?\{string_value:"([a-z0-9]+)".*/\1/p')
    case $precision in
        bf16) has avx512bw avx512dq avx512vl || has avx_vnni || refuse "$config" bf16 AVX-512 ;;
        fp16) has avx512_fp16 || has avx_vnni || refuse "$config" fp16 AVX512-FP16 ;;
        int8) has amx_int8 || has avx512_vnni || has avx_vnni || refuse "$config" int8 "VNNI or AMX" ;;
    esac
done

# NVIDIA's entry point has already run this script and exported its variables. Each process of a Python model would run
# it again.
unset BASH_ENV
# deeplabv3/embedded/layout.py explains why; a test compares the values.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-33554432}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-134217728}
# By default OpenMP counts the cores of the machine and ignores the quota of the container.
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

# deeplabv3/embedded/limits.py explains why; a test compares the value, which is in KiB.
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
    echo "entrypoint.sh: warning: the stack of a thread is limited to $(ulimit -Ss) KiB, so a form-encoded request of half" \
        "that size can crash the server; allow $stack KiB (docker run --ulimit stack=$((stack * 1024)), no 'ulimit -v'," \
        "vm.overcommit_memory 0 or 1)" >&2
fi
ulimit -Sn "$(ulimit -Hn)"

# A random key that is not stored, because Triton has no other way to disable these interfaces.
key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
closed="shared-memory,model-repository,trace,logging:deeplab-key=$key"

# In a pod, /dev/shm outlives the container, with the files of a server that was killed or had a dead model. So each
# server's files have a name of their own, and a lock that the server and its models' processes hold while they live.
exec {guard}</dev/shm/ # so that no other server removes a new lock before it is held
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
# nvidia-smi hangs when the driver hangs.
listed=$(timeout -k 5 30 nvidia-smi --list-gpus 2>/dev/null) || {
    code=$?
    if ((code == 124 || code == 137)); then
        echo "entrypoint.sh: warning: nvidia-smi did not answer within 30 s, so GPUs get no memory pool; check the driver" \
            "with 'nvidia-smi' and 'dmesg' on the host" >&2
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
        # Triton's default name is the same for every service.
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
