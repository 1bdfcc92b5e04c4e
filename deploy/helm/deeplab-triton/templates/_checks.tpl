{{/* Mebibytes of a quantity in Mi or Gi, which is what the schema admits. */}}
{{- define "deeplab-triton.mebibytes" -}}
{{- if hasSuffix "Gi" . -}}
{{- mul 1024 (trimSuffix "Gi" . | int64) -}}
{{- else -}}
{{- trimSuffix "Mi" . | int64 -}}
{{- end -}}
{{- end -}}

{{/* Refuse values that each are right and together cannot work. */}}
{{- define "deeplab-triton.checks" -}}
{{- $values := .Values -}}
{{- /* Helm takes release names with dots and a digit in front; Services take neither. */ -}}
{{- $name := include "deeplab-triton.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "%s: a Service's name has lower-case letters, digits and dashes, and begins with a letter; set fullnameOverride" $name) -}}
{{- end -}}
{{- $limit := include "deeplab-triton.mebibytes" $values.resources.limits.memory | int64 -}}
{{- $shared := include "deeplab-triton.mebibytes" $values.sharedMemory.size | int64 -}}
{{- $beside := include "deeplab-triton.mebibytes" $values.sharedMemory.minimumBeside | int64 -}}
{{- if lt $limit (add $shared $beside) -}}
{{- fail (printf "resources.limits.memory %s: /dev/shm counts against it, so it must hold sharedMemory.size %s and sharedMemory.minimumBeside %s; set it to %dMi or more" $values.resources.limits.memory $values.sharedMemory.size $values.sharedMemory.minimumBeside (add $shared $beside)) -}}
{{- end -}}
{{- range $of, $resources := dict
  "resources" $values.resources
  "initResources" $values.initResources
  "models.builder.resources" $values.models.builder.resources
  "monitoring.sharedMemoryExporter.resources" $values.monitoring.sharedMemoryExporter.resources
  "test.resources" $values.test.resources
  "loadTest.resources" $values.loadTest.resources -}}
{{- if gt (include "deeplab-triton.mebibytes" $resources.requests.memory | int64) (include "deeplab-triton.mebibytes" $resources.limits.memory | int64) -}}
{{- fail (printf "%s.requests.memory %s is above %s.limits.memory %s" $of $resources.requests.memory $of $resources.limits.memory) -}}
{{- end -}}
{{- end -}}
{{- range $label, $ignored := include "deeplab-triton.labels" (dict "root" . "component" "server") | fromYaml -}}
{{- range $of := list "podLabels" "commonLabels" -}}
{{- if hasKey (get $values $of) $label -}}
{{- fail (printf "%s %s: the chart sets this label itself, and finds its pods by some; take another name" $of $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "deeplab-triton.checkServerOptions" . -}}
{{- include "deeplab-triton.checkTracing" . -}}
{{- $age := int64 $values.server.grpcMaxConnectionAgeSeconds -}}
{{- $sleep := int64 $values.server.preStopSeconds -}}
{{- if and (gt $age 0) (gt $sleep 0) (ge (mul 11 $age) (mul 10 $sleep)) -}}
{{- fail (printf "server.grpcMaxConnectionAgeSeconds %d: connections would outlive server.preStopSeconds %d, and requests on them be lost when the pod stops; it must be below %d" $age $sleep (div (mul 10 $sleep) 11)) -}}
{{- end -}}
{{- if gt (int $values.autoscaling.minReplicas) (int $values.autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas %d is above autoscaling.maxReplicas %d" (int $values.autoscaling.minReplicas) (int $values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $values.updateStrategy.type "RollingUpdate") (has (toString $values.updateStrategy.maxSurge) (list "0" "0%")) (has (toString $values.updateStrategy.maxUnavailable) (list "0" "0%")) -}}
{{- fail "updateStrategy: maxSurge and maxUnavailable are both 0, so no pod could ever be replaced; set one of them to 1" -}}
{{- end -}}
{{- if eq $values.models.source "pvc" -}}
{{- include "deeplab-triton.checkClaim" . -}}
{{- end -}}
{{- if and (eq $values.models.source "imageVolume") (not $values.models.imageVolume.reference) -}}
{{- fail "models.imageVolume.reference is empty: name the image that holds the model repository" -}}
{{- end -}}
{{- if and (eq $values.models.source "objectStore") (not $values.models.objectStore.path) -}}
{{- fail "models.objectStore.path is empty: name the bucket and folder that hold the model repository" -}}
{{- end -}}
{{- if and (eq $values.autoscaling.type "keda") (not $values.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress is empty: KEDA needs the address of Prometheus" -}}
{{- end -}}
{{- if and $values.autoscaling.keda.authModes (not $values.autoscaling.keda.authenticationRef) -}}
{{- fail (printf "autoscaling.keda.authModes %s: autoscaling.keda.authenticationRef must name the TriggerAuthentication with what it takes" $values.autoscaling.keda.authModes) -}}
{{- end -}}
{{- $again := "a Deployment would start the run again whenever it ends; use the page, or one pod of the client image (README.md)" -}}
{{- range $values.loadTest.extraArgs -}}
{{- if has (splitList "=" . | first) (list "--headless" "--autostart" "--autoquit") -}}
{{- fail (printf "loadTest.extraArgs %s: %s" . $again) -}}
{{- end -}}
{{- end -}}
{{- range $variable, $value := $values.loadTest.env -}}
{{- if has $variable (list "LOCUST_HEADLESS" "LOCUST_AUTOSTART" "LOCUST_AUTOQUIT") -}}
{{- fail (printf "loadTest.env %s: %s" $variable $again) -}}
{{- end -}}
{{- end -}}
{{- if include "deeplab-triton.setsVariable" (dict "env" $values.models.builder.extraEnv "name" "BUILD") -}}
{{- fail "models.builder.extraEnv BUILD: it names the folder that the server waits for; use models.builder.revision" -}}
{{- end -}}
{{- $builder := $values.models.builder -}}
{{- if ne (eq $builder.precision "int8") (ne $builder.calibration.existingClaim "") -}}
{{- fail (printf "models.builder.precision %q with models.builder.calibration.existingClaim %q: int8 needs a claim with pictures for its calibration, and nothing else takes one" $builder.precision $builder.calibration.existingClaim) -}}
{{- end -}}
{{- if and $values.gpu.enabled (eq $builder.precision "int8") -}}
{{- fail "models.builder.precision int8 is for CPUs: set gpu.enabled to false, or take fp16" -}}
{{- end -}}
{{- if and (not $values.gpu.enabled) (or $builder.postprocessDevice (has $builder.precision (list "fp16" "tf32"))) -}}
{{- fail (printf "models.builder.postprocessDevice %q and models.builder.precision %q: gpu.enabled is false, and a server on the CPU takes fp32, bf16 or int8 and makes its masks there" $builder.postprocessDevice $builder.precision) -}}
{{- end -}}
{{- $gateway := $values.gateway -}}
{{- if and (or $gateway.grpc.enabled $gateway.http.enabled) (not $gateway.parentRefs) -}}
{{- fail "gateway.parentRefs is empty: a route needs a Gateway" -}}
{{- end -}}
{{- include "deeplab-triton.checkCallers" . -}}
{{- /* The Gateway API has the second of a GRPCRoute and an HTTPRoute with a common host name on one listener refused. */ -}}
{{- if and $gateway.grpc.enabled $gateway.http.enabled -}}
{{- range list $gateway.grpc.hostnames $gateway.http.hostnames -}}
{{- if not . -}}
{{- fail "gateway: with both routes, gateway.grpc.hostnames and gateway.http.hostnames must name different hosts, and one is empty" -}}
{{- end -}}
{{- end -}}
{{- range $gateway.grpc.hostnames -}}
{{- if has . $gateway.http.hostnames -}}
{{- fail (printf "gateway: host name %s is in gateway.grpc.hostnames and in gateway.http.hostnames; a listener takes one kind of route for a host" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The last of two options counts, so one that is given again would make the derived values untrue: the grace period,
     the ports of probes and Services. */}}
{{- define "deeplab-triton.checkServerOptions" -}}
{{- $setElsewhere := dict
  "--exit-timeout-secs" "set server.exitTimeoutSeconds"
  "--grpc-max-connection-age" "set server.grpcMaxConnectionAgeSeconds"
  "--grpc-max-connection-age-grace" "set server.grpcMaxConnectionAgeGraceSeconds"
  "--grpc-infer-thread-count" "set server.grpcInferThreadCount"
  "--http-max-input-size" "set server.httpMaxInputBytes"
  "--metrics-config" "add to server.metricsConfig"
  "--model-repository" "set models.source"
  "--model-store" "set models.source"
  "--http-port" "probes and Services go to 8000"
  "--grpc-port" "Services go to 8001"
  "--metrics-port" "the PodMonitor goes to 8002" -}}
{{- if .Values.server.tracing.enabled -}}
{{- $_ := set $setElsewhere "--trace-config" "set server.tracing, and what it lacks by OpenTelemetry's variables in extraEnv" -}}
{{- end -}}
{{- range .Values.server.extraArgs -}}
{{- $option := splitList "=" . | first -}}
{{- range $known, $remedy := $setElsewhere -}}
{{- /* tritonserver takes the beginning of an option for it. */ -}}
{{- if hasPrefix $option $known -}}
{{- fail (printf "server.extraArgs %s: %s" $option $remedy) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "deeplab-triton.checkTracing" -}}
{{- $tracing := .Values.server.tracing -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and $tracing.enabled (not $tracing.endpoint) -}}
{{- fail "server.tracing.endpoint is empty: tracing needs the URL of a receiver of OTLP over HTTP" -}}
{{- end -}}
{{- /* No policy holds for a receiver in the same pod. */ -}}
{{- $local := regexMatch "^https?://(localhost|127\\.[0-9.]+|\\[::1\\])[:/]" $tracing.endpoint -}}
{{- if and $tracing.enabled $policy.enabled (not (or $local $tracing.to $policy.extraEgress)) -}}
{{- fail (printf "server.tracing.endpoint %s: the NetworkPolicy closes the way there; name the receiver's peers in server.tracing.to, such as {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: observability}}}" $tracing.endpoint) -}}
{{- end -}}
{{- end -}}

{{- define "deeplab-triton.checkClaim" -}}
{{- $modes := .Values.models.pvc.accessModes -}}
{{- if and .Values.models.builder.enabled (eq (toJson $modes) "[\"ReadOnlyMany\"]") -}}
{{- fail "models.pvc.accessModes [ReadOnlyMany]: the builder cannot write there; set models.builder.enabled to false" -}}
{{- end -}}
{{- if and .Values.models.builder.enabled (has "ReadWriteOncePod" $modes) -}}
{{- fail "models.pvc.accessModes ReadWriteOncePod: the server's pod waits with the claim for the builder, which could then not mount it; take ReadWriteOnce, or fill the claim before and set models.builder.enabled to false" -}}
{{- end -}}
{{- if and (not .Values.models.builder.enabled) (not .Values.models.pvc.existingClaim) -}}
{{- fail "models.builder.enabled is false and models.pvc.existingClaim empty: a new claim would stay empty; name a claim that holds the models" -}}
{{- end -}}
{{- if not (include "deeplab-triton.claimIsShared" .) -}}
{{- if gt (include "deeplab-triton.mostPods" . | int) 1 -}}
{{- fail (printf "models.pvc.accessModes %s: one node mounts it at a time, and %s pods are wanted; use a claim with ReadWriteMany, or another models.source" (toJson $modes) (include "deeplab-triton.mostPods" .)) -}}
{{- end -}}
{{- if ne .Values.updateStrategy.type "Recreate" -}}
{{- fail (printf "models.pvc.accessModes %s: a new pod on another node would wait for the claim for as long as the old one serves; set updateStrategy.type to Recreate" (toJson $modes)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A way in from outside that the NetworkPolicy closes. A balancer's and a node port's callers have addresses outside
     the cluster or of nodes, and only an ipBlock finds those. A gateway's pods are in another namespace. */}}
{{- define "deeplab-triton.checkCallers" -}}
{{- $policy := .Values.networkPolicy -}}
{{- $blocks := false -}}
{{- $namespaces := false -}}
{{- range $policy.allowedFrom -}}
{{- $blocks = or $blocks (hasKey . "ipBlock") -}}
{{- $namespaces = or $namespaces (hasKey . "namespaceSelector") -}}
{{- end -}}
{{- if and $policy.enabled (ne .Values.service.type "ClusterIP") (not $blocks) -}}
{{- fail (printf "service.type %s: networkPolicy.allowedFrom blocks its callers, which are outside the cluster; add an ipBlock with their addresses and those of the nodes, such as {ipBlock: {cidr: 10.0.0.0/8}}" .Values.service.type) -}}
{{- end -}}
{{- if or .Values.gateway.grpc.enabled .Values.gateway.http.enabled -}}
{{- range .Values.gateway.parentRefs -}}
{{- $namespace := default $.Release.Namespace .namespace -}}
{{- if and $policy.enabled (ne $namespace $.Release.Namespace) (not (or $blocks $namespaces)) -}}
{{- fail (printf "gateway.parentRefs %s: networkPolicy.allowedFrom blocks the gateway, whose pods are in another namespace; add {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}}, or the namespace in which its proxies run" .name $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
