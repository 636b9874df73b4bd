{{/* Names, labels and figures that several templates share. */}}

{{- define "stepd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "stepd.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "stepd.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "stepd.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "stepd.selector" -}}
app.kubernetes.io/name: {{ include "stepd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "stepd.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "stepd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "stepd.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "stepd.resources" -}}
{{- $memory := printf "%dMi" (add .Values.arenaMib .Values.nodeMib) }}
{{- $requests := dict "cpu" (toString .Values.workers) "memory" $memory }}
{{- $limits := dict "memory" $memory }}
{{- mergeOverwrite (dict "requests" $requests "limits" $limits) (deepCopy .Values.resources) | toYaml }}
{{- end }}

{{/* The name of the service for the admin port. */}}
{{- define "stepd.admin" -}}
{{- printf "%s-admin" (include "stepd.fullname" . | trunc 57 | trimSuffix "-") }}
{{- end }}

{{/* How replicas come and go, for both autoscalers. */}}
{{- define "stepd.scaling" -}}
# Scaling up is immediate, because refused callers retry within seconds.
scaleUp:
  stabilizationWindowSeconds: 0
# Scaling down is slow, because trainers step in bursts.
scaleDown:
  stabilizationWindowSeconds: 300
{{- end }}

{{/* The mean bytes in flight of a replica at which the autoscalers aim. */}}
{{- define "stepd.targetBytes" -}}
{{- div (mul .Values.arenaMib 1048576 .Values.autoscaling.targetArenaPercent) 100 }}
{{- end }}
