{{/* Settings of all pods of the chart. */}}
{{- define "deeplab-triton.podDefaults" -}}
serviceAccountName: {{ include "deeplab-triton.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.schedulerName }}
schedulerName: {{ . | quote }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- range $key := list "runAsUser" "runAsGroup" "fsGroup" }}
  {{- with get $.Values.podSecurityContext $key }}
  {{ $key }}: {{ int64 . }}
  {{- end }}
  {{- end }}
  # Do not change the owner of every file of a claim at each start.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "deeplab-triton.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Tolerations of the server, and of the builder on the same nodes. Arguments: root, more. */}}
{{- define "deeplab-triton.tolerations" -}}
{{- $gpu := ternary .root.Values.gpu.tolerations list .root.Values.gpu.enabled -}}
{{- with concat $gpu .root.Values.tolerations .more }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Whether a list of environment variables contains a name, because server-side apply rejects duplicate names.
     Arguments: env, name. */}}
{{- define "deeplab-triton.setsVariable" -}}
{{- $name := .name -}}
{{- range .env -}}
{{- if eq .name $name }}true{{ end -}}
{{- end -}}
{{- end -}}

{{- define "deeplab-triton.autoscaled" -}}
{{- if ne .Values.autoscaling.type "none" }}true{{ end -}}
{{- end -}}

{{/* The smallest number of pods. */}}
{{- define "deeplab-triton.fewestPods" -}}
{{- ternary .Values.autoscaling.minReplicas .Values.replicaCount (eq (include "deeplab-triton.autoscaled" .) "true") | int -}}
{{- end -}}

{{/* The largest number of pods. */}}
{{- define "deeplab-triton.mostPods" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicaCount (eq (include "deeplab-triton.autoscaled" .) "true") | int -}}
{{- end -}}
