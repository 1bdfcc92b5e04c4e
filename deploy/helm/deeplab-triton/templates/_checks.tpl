{{/* Mebibytes of a quantity in Mi or Gi, the two units that the schema allows. */}}
{{- define "deeplab-triton.mebibytes" -}}
{{- if hasSuffix "Gi" . -}}
{{- mul 1024 (trimSuffix "Gi" . | int64) -}}
{{- else -}}
{{- trimSuffix "Mi" . | int64 -}}
{{- end -}}
{{- end -}}

{{/* Reject combinations of valid values that cannot work. */}}
{{- define "deeplab-triton.checks" -}}
{{- $values := .Values -}}
{{- /* Helm accepts release names with dots and a leading digit; Services accept neither. */ -}}
{{- $name := include "deeplab-triton.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "%s is not a valid name for a Service, which must start with a letter and have only lowercase letters, digits and dashes; set fullnameOverride" $name) -}}
{{- end -}}
{{- $limit := include "deeplab-triton.mebibytes" $values.resources.limits.memory | int64 -}}
{{- $shared := include "deeplab-triton.mebibytes" $values.sharedMemory.size | int64 -}}
{{- $beside := include "deeplab-triton.mebibytes" $values.sharedMemory.minimumBeside | int64 -}}
{{- if lt $limit (add $shared $beside) -}}
{{- fail (printf "resources.limits.memory %s is below sharedMemory.size %s plus sharedMemory.minimumBeside %s, and /dev/shm counts against the limit; set it to %dMi or more" $values.resources.limits.memory $values.sharedMemory.size $values.sharedMemory.minimumBeside (add $shared $beside)) -}}
{{- end -}}
{{- range $of, $resources := dict
  "resources" $values.resources
  "initResources" $values.initResources
  "models.builder.resources" $values.models.builder.resources
  "monitoring.sharedMemoryExporter.resources" $values.monitoring.sharedMemoryExporter.resources
  "test.resources" $values.test.resources
  "loadTest.resources" $values.loadTest.resources -}}
{{- if gt (include "deeplab-triton.mebibytes" $resources.requests.memory | int64) (include "deeplab-triton.mebibytes" $resources.limits.memory | int64) -}}
{{- fail (printf "%s.requests.memory %s is above %s.limits.memory %s; lower the request or raise the limit" $of $resources.requests.memory $of $resources.limits.memory) -}}
{{- end -}}
{{- end -}}
{{- range $label, $ignored := include "deeplab-triton.labels" (dict "root" . "component" "server") | fromYaml -}}
{{- range $of := list "podLabels" "commonLabels" -}}
{{- if hasKey (get $values $of) $label -}}
{{- fail (printf "%s %s: the chart sets this label itself; use another name" $of $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "deeplab-triton.checkServerOptions" . -}}
{{- include "deeplab-triton.checkTracing" . -}}
{{- $age := int64 $values.server.grpcMaxConnectionAgeSeconds -}}
{{- $sleep := int64 $values.server.preStopSeconds -}}
{{- if and (gt $age 0) (gt $sleep 0) (ge (mul 11 $age) (mul 10 $sleep)) -}}
{{- fail (printf "server.grpcMaxConnectionAgeSeconds %d is too high for server.preStopSeconds %d: connections would outlive the pod and lose requests; it must be below %d" $age $sleep (div (mul 10 $sleep) 11)) -}}
{{- end -}}
{{- if gt (int $values.autoscaling.minReplicas) (int $values.autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas %d is above autoscaling.maxReplicas %d; lower the first or raise the second" (int $values.autoscaling.minReplicas) (int $values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $values.updateStrategy.type "RollingUpdate") (has (toString $values.updateStrategy.maxSurge) (list "0" "0%")) (has (toString $values.updateStrategy.maxUnavailable) (list "0" "0%")) -}}
{{- fail "updateStrategy.maxSurge and updateStrategy.maxUnavailable are both 0, so no pod could be replaced; set one of them to 1" -}}
{{- end -}}
{{- if eq $values.models.source "pvc" -}}
{{- include "deeplab-triton.checkClaim" . -}}
{{- end -}}
{{- if and (eq $values.models.source "imageVolume") (not $values.models.imageVolume.reference) -}}
{{- fail "models.imageVolume.reference is empty; set it to the image that contains the model repository" -}}
{{- end -}}
{{- if and (eq $values.models.source "objectStore") (not $values.models.objectStore.path) -}}
{{- fail "models.objectStore.path is empty; set it to the bucket and folder that contain the model repository" -}}
{{- end -}}
{{- if and (eq $values.autoscaling.type "keda") (not $values.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress is empty; set it to the URL of Prometheus" -}}
{{- end -}}
{{- if and $values.autoscaling.keda.authModes (not $values.autoscaling.keda.authenticationRef) -}}
{{- fail (printf "autoscaling.keda.authModes %s needs credentials; set autoscaling.keda.authenticationRef to the name of a TriggerAuthentication" $values.autoscaling.keda.authModes) -}}
{{- end -}}
{{- $again := "the Deployment would repeat the run whenever it ends; use Locust's web page, or one pod of the client image (README.md)" -}}
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
{{- fail "models.builder.extraEnv BUILD: the chart sets this variable to the folder of the build; to build again, change models.builder.revision" -}}
{{- end -}}
{{- $builder := $values.models.builder -}}
{{- if ne (eq $builder.precision "int8") (ne $builder.calibration.existingClaim "") -}}
{{- fail (printf "models.builder.precision %q does not match models.builder.calibration.existingClaim %q: int8 needs a claim with calibration pictures, the other precisions do not use one; set both or neither" $builder.precision $builder.calibration.existingClaim) -}}
{{- end -}}
{{- if and $values.gpu.enabled (eq $builder.precision "int8") -}}
{{- fail "models.builder.precision int8 runs only on a CPU; set gpu.enabled to false, or use fp16" -}}
{{- end -}}
{{- if and (not $values.gpu.enabled) (or $builder.postprocessDevice (has $builder.precision (list "fp16" "tf32"))) -}}
{{- fail (printf "models.builder.postprocessDevice %q or models.builder.precision %q needs a GPU, and gpu.enabled is false; leave the first empty, and use fp32, bf16 or int8 for the second" $builder.postprocessDevice $builder.precision) -}}
{{- end -}}
{{- $gateway := $values.gateway -}}
{{- if and (or $gateway.grpc.enabled $gateway.http.enabled) (not $gateway.parentRefs) -}}
{{- fail "gateway.parentRefs is empty; set it to the Gateway that the routes attach to" -}}
{{- end -}}
{{- include "deeplab-triton.checkCallers" . -}}
{{- /* Where a GRPCRoute and an HTTPRoute share a host name on one listener, the Gateway API rejects the second. */ -}}
{{- if and $gateway.grpc.enabled $gateway.http.enabled -}}
{{- range list $gateway.grpc.hostnames $gateway.http.hostnames -}}
{{- if not . -}}
{{- fail "gateway.grpc.hostnames or gateway.http.hostnames is empty; with both routes, they must name different hosts" -}}
{{- end -}}
{{- end -}}
{{- range $gateway.grpc.hostnames -}}
{{- if has . $gateway.http.hostnames -}}
{{- fail (printf "host name %s is in gateway.grpc.hostnames and in gateway.http.hostnames; use different names, because a listener accepts one kind of route for a host" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* tritonserver uses the last of two equal options. One that is given again would make derived values wrong: the grace
     period, the ports of probes and Services. */}}
{{- define "deeplab-triton.checkServerOptions" -}}
{{- $setElsewhere := dict
  "--exit-timeout-secs" "set server.exitTimeoutSeconds instead"
  "--grpc-max-connection-age" "set server.grpcMaxConnectionAgeSeconds instead"
  "--grpc-max-connection-age-grace" "set server.grpcMaxConnectionAgeGraceSeconds instead"
  "--grpc-infer-thread-count" "set server.grpcInferThreadCount instead"
  "--http-max-input-size" "set server.httpMaxInputBytes instead"
  "--metrics-config" "add it to server.metricsConfig instead"
  "--model-repository" "set models.source instead"
  "--model-store" "set models.source instead"
  "--http-port" "leave it out, because probes and Services use port 8000"
  "--grpc-port" "leave it out, because Services use port 8001"
  "--metrics-port" "leave it out, because the PodMonitor uses port 8002" -}}
{{- if .Values.server.tracing.enabled -}}
{{- $_ := set $setElsewhere "--trace-config" "set server.tracing instead, and other settings with OpenTelemetry's variables in extraEnv" -}}
{{- end -}}
{{- range .Values.server.extraArgs -}}
{{- $option := splitList "=" . | first -}}
{{- range $known, $remedy := $setElsewhere -}}
{{- /* tritonserver accepts an abbreviated option. */ -}}
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
{{- fail "server.tracing.endpoint is empty; set it to the URL of a receiver of OTLP over HTTP" -}}
{{- end -}}
{{- /* A NetworkPolicy does not apply to a receiver in the same pod. */ -}}
{{- $local := regexMatch "^https?://(localhost|127\\.[0-9.]+|\\[::1\\])[:/]" $tracing.endpoint -}}
{{- if and $tracing.enabled $policy.enabled (not (or $local $tracing.to $policy.extraEgress)) -}}
{{- fail (printf "server.tracing.endpoint %s is blocked by the NetworkPolicy; add the receiver's peers to server.tracing.to, such as {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: observability}}}" $tracing.endpoint) -}}
{{- end -}}
{{- end -}}

{{- define "deeplab-triton.checkClaim" -}}
{{- $modes := .Values.models.pvc.accessModes -}}
{{- if and .Values.models.builder.enabled (eq (toJson $modes) "[\"ReadOnlyMany\"]") -}}
{{- fail "models.pvc.accessModes [ReadOnlyMany]: the builder cannot write to such a claim; add ReadWriteMany, or fill the claim yourself and set models.builder.enabled to false" -}}
{{- end -}}
{{- if and .Values.models.builder.enabled (has "ReadWriteOncePod" $modes) -}}
{{- fail "models.pvc.accessModes ReadWriteOncePod: the builder cannot mount the claim while the server's pod waits with it; use ReadWriteOnce, or fill the claim yourself and set models.builder.enabled to false" -}}
{{- end -}}
{{- if and (not .Values.models.builder.enabled) (not .Values.models.pvc.existingClaim) -}}
{{- fail "models.builder.enabled is false and models.pvc.existingClaim is empty, so a new claim would stay empty; set models.pvc.existingClaim to a claim that contains the models" -}}
{{- end -}}
{{- if not (include "deeplab-triton.claimIsShared" .) -}}
{{- if gt (include "deeplab-triton.mostPods" . | int) 1 -}}
{{- fail (printf "models.pvc.accessModes %s: only one node can mount the claim, and there may be %s pods; use a claim with ReadWriteMany, or another models.source" (toJson $modes) (include "deeplab-triton.mostPods" .)) -}}
{{- end -}}
{{- if ne .Values.updateStrategy.type "Recreate" -}}
{{- fail (printf "models.pvc.accessModes %s: only one node can mount the claim, so a new pod on another node could not start before the old one stops; set updateStrategy.type to Recreate" (toJson $modes)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Reject callers from outside that the NetworkPolicy would block. Callers of a load balancer or a node port have
     addresses outside the cluster or of nodes, which only an ipBlock matches. A gateway's pods are in another
     namespace. */}}
{{- define "deeplab-triton.checkCallers" -}}
{{- $policy := .Values.networkPolicy -}}
{{- $blocks := false -}}
{{- $namespaces := false -}}
{{- range $policy.allowedFrom -}}
{{- $blocks = or $blocks (hasKey . "ipBlock") -}}
{{- $namespaces = or $namespaces (hasKey . "namespaceSelector") -}}
{{- end -}}
{{- if and $policy.enabled (ne .Values.service.type "ClusterIP") (not $blocks) -}}
{{- fail (printf "service.type %s: networkPolicy.allowedFrom blocks its callers, because they are outside the cluster; add an ipBlock with their addresses and those of the nodes, such as {ipBlock: {cidr: 10.0.0.0/8}}" .Values.service.type) -}}
{{- end -}}
{{- if or .Values.gateway.grpc.enabled .Values.gateway.http.enabled -}}
{{- range .Values.gateway.parentRefs -}}
{{- $namespace := default $.Release.Namespace .namespace -}}
{{- if and $policy.enabled (ne $namespace $.Release.Namespace) (not (or $blocks $namespaces)) -}}
{{- fail (printf "gateway.parentRefs %s: networkPolicy.allowedFrom blocks the gateway, because its pods are in another namespace; add {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}}, or the namespace of its proxies if it is another" .name $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
