{{/* What all pods of the chart have in common. */}}
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
  # A claim with many files is not walked through at each start.
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

{{/* What the server tolerates, and the builder on the same nodes. Arguments: root, more. */}}
{{- define "deeplab-triton.tolerations" -}}
{{- $gpu := ternary .root.Values.gpu.tolerations list .root.Values.gpu.enabled -}}
{{- with concat $gpu .root.Values.tolerations .more }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Whether a list of environment variables has one: a name that comes twice is refused by server-side apply.
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

{{/* The fewest pods that are wanted at a time. */}}
{{- define "deeplab-triton.fewestPods" -}}
{{- ternary .Values.autoscaling.minReplicas .Values.replicaCount (eq (include "deeplab-triton.autoscaled" .) "true") | int -}}
{{- end -}}

{{/* The most pods that are wanted at a time. */}}
{{- define "deeplab-triton.mostPods" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicaCount (eq (include "deeplab-triton.autoscaled" .) "true") | int -}}
{{- end -}}
