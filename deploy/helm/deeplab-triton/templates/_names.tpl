{{/* Base of all names, at most 40 characters: room for the longest suffix and the hashes that Kubernetes appends. */}}
{{- define "deeplab-triton.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- end -}}
{{- if gt (len $name) 40 -}}
{{- $name = printf "%s-%s" (trunc 31 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "deeplab-triton.serviceAccountName" -}}
{{- default (ternary (include "deeplab-triton.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Labels that select the pods of a component. They must never change, because the selector of a Deployment cannot.
     Arguments: root, component. */}}
{{- define "deeplab-triton.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* The chart's own labels of an object. Arguments: root, component. */}}
{{- define "deeplab-triton.labels" -}}
{{ include "deeplab-triton.selectorLabels" . }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/* An object's metadata. Arguments: root, component, name; optional: labels, annotations. Those come first, the common
     ones last. */}}
{{- define "deeplab-triton.metadata" -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- toYaml (merge dict (default dict .labels) (include "deeplab-triton.labels" . | fromYaml) .root.Values.commonLabels) | nindent 2 }}
{{- with merge dict (default dict .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels of a component's pods. Arguments: root, component; optional: labels. */}}
{{- define "deeplab-triton.podLabels" -}}
{{- toYaml (merge dict (default dict .labels) (include "deeplab-triton.selectorLabels" . | fromYaml) .root.Values.commonLabels) -}}
{{- end -}}

{{/* Arguments: root, image. */}}
{{- define "deeplab-triton.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}
{{- end -}}

{{/* The text of one of the chart's files. Without the check, a tool that leaves files out would apply an empty object.
     Arguments: root, path. */}}
{{- define "deeplab-triton.file" -}}
{{- required (printf "%s is missing from the chart, or empty; package the chart with all of its files" .path) (.root.Files.Get .path) -}}
{{- end -}}
