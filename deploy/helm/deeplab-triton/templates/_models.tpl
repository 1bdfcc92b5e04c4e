{{- define "deeplab-triton.builds" -}}
{{- if and (eq .Values.models.source "pvc") .Values.models.builder.enabled }}true{{ end -}}
{{- end -}}

{{- define "deeplab-triton.claim" -}}
{{- default (printf "%s-models" (include "deeplab-triton.fullname" .)) .Values.models.pvc.existingClaim -}}
{{- end -}}

{{/* Options of build_models.py except the repository, as a YAML list. */}}
{{- define "deeplab-triton.builderArgs" -}}
{{- $builder := .Values.models.builder -}}
{{- if $builder.args -}}
{{- toYaml $builder.args -}}
{{- else -}}
{{- $args := list "--device" (ternary "cuda" "cpu" .Values.gpu.enabled) "--no-progress" -}}
{{- if and .Values.gpu.enabled (gt (int $builder.maxQueueSize) 0) -}}
{{- $args = concat $args (list "--max-queue-size" (toString (int $builder.maxQueueSize))) -}}
{{- end -}}
{{- if not $builder.direct -}}
{{- $args = append $args "--no-direct" -}}
{{- end -}}
{{- with $builder.postprocessDevice -}}
{{- $args = concat $args (list "--postprocess-device" .) -}}
{{- end -}}
{{- with $builder.precision -}}
{{- $args = concat $args (list "--precision" .) -}}
{{- end -}}
{{- if $builder.calibration.existingClaim -}}
{{- $args = concat $args (list "--calibration" "/calibration") -}}
{{- end -}}
{{- toYaml (concat $args $builder.extraArgs) -}}
{{- end -}}
{{- end -}}

{{/* Folder of a build in the claim. Its name is a hash of everything that determines the build, including a mounted
     checkpoint, so that a new build does not replace the one that old pods still serve. */}}
{{- define "deeplab-triton.build" -}}
{{- $builder := .Values.models.builder -}}
{{- $image := include "deeplab-triton.image" (dict "root" . "image" .Values.image) -}}
{{- $inputs := list $image (include "deeplab-triton.builderArgs" .) $builder.calibration $builder.extraVolumes $builder.extraVolumeMounts $builder.revision -}}
build-{{ toJson $inputs | sha256sum | trunc 10 }}
{{- end -}}

{{/* Whether pods on several nodes can mount the claim. */}}
{{- define "deeplab-triton.claimIsShared" -}}
{{- $modes := .Values.models.pvc.accessModes -}}
{{- if or (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes) }}true{{ end -}}
{{- end -}}

{{/* The volume of the models, if there is one. */}}
{{- define "deeplab-triton.modelsVolume" -}}
{{- $models := .Values.models -}}
{{- if eq $models.source "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "deeplab-triton.claim" . | quote }}
    {{- if eq (toJson $models.pvc.accessModes) "[\"ReadOnlyMany\"]" }}
    readOnly: true
    {{- end }}
{{- else if eq $models.source "imageVolume" }}
- name: models
  image:
    reference: {{ $models.imageVolume.reference | quote }}
    pullPolicy: {{ $models.imageVolume.pullPolicy }}
{{- else if eq $models.source "objectStore" }}
- name: models
  emptyDir:
    sizeLimit: {{ $models.objectStore.size }}
{{- end }}
{{- end -}}

{{- define "deeplab-triton.modelsMount" -}}
{{- $models := .Values.models -}}
{{- if ne $models.source "image" }}
- name: models
  mountPath: /models
  readOnly: true
  {{- if include "deeplab-triton.builds" . }}
  subPath: {{ include "deeplab-triton.build" . }}
  {{- else if eq $models.source "pvc" }}
  {{- with $models.pvc.path }}
  subPath: {{ . | quote }}
  {{- end }}
  {{- else if eq $models.source "imageVolume" }}
  {{- with $models.imageVolume.path }}
  subPath: {{ . | quote }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Init containers that wait for the models, or copy them, before the server starts. */}}
{{- define "deeplab-triton.modelsInitContainers" -}}
{{- $models := .Values.models -}}
{{- if include "deeplab-triton.builds" . }}
- name: wait-for-models
  image: {{ include "deeplab-triton.image" (dict "root" . "image" .Values.image) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command:
    - /bin/sh
    - -c
    - |
      trap 'exit 1' TERM
      until [ -e "/claim/$BUILD.done" ]; do
        echo "waiting for the Job that builds the models into $BUILD"
        sleep 5 & wait $!
      done
  env:
    - name: BUILD
      value: {{ include "deeplab-triton.build" . }}
    - name: NVIDIA_VISIBLE_DEVICES
      value: void
  resources:
    {{- toYaml .Values.initResources | nindent 4 }}
  securityContext:
    {{- include "deeplab-triton.containerSecurityContext" . | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /claim
      readOnly: true
{{- else if eq $models.source "objectStore" }}
{{- $store := $models.objectStore }}
- name: copy-models
  image: {{ include "deeplab-triton.image" (dict "root" . "image" $store.image) }}
  imagePullPolicy: {{ $store.image.pullPolicy }}
  args: [copy, {{ printf "models:%s" $store.path | quote }}, /models, --config=/tmp/rclone.conf, --verbose]
  env:
    - name: RCLONE_CONFIG_MODELS_TYPE
      value: {{ $store.type | quote }}
    {{- range $option, $value := $store.options }}
    - name: RCLONE_CONFIG_MODELS_{{ upper $option }}
      value: {{ $value | quote }}
    {{- end }}
  {{- with $store.existingSecret }}
  envFrom:
    - secretRef:
        name: {{ . | quote }}
  {{- end }}
  resources:
    {{- toYaml .Values.initResources | nindent 4 }}
  securityContext:
    {{- include "deeplab-triton.containerSecurityContext" . | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end -}}
