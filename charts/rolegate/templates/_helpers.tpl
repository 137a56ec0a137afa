{{- define "rolegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "rolegate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "rolegate.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "rolegate.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "rolegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "rolegate.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{- required "serviceAccount.name is required if serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* The labels that select the pods. A selector cannot be changed later, so nothing that may change is among them. */}}
{{- define "rolegate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rolegate.name" . }}
{{- end }}

{{- define "rolegate.labels" -}}
{{ include "rolegate.selectorLabels" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "rolegate.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The DaemonSets, as a JSON list. Each has a name, its flags and, if it is that of a node pool, the values of the pools' label. The one
for all other nodes has the values of every pool as `not`. */}}
{{- define "rolegate.daemonSets" -}}
{{- $base := dict }}
{{- range $name, $value := .Values.flags }}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $base $name $value }}{{ end }}
{{- end }}
{{- if .Values.ciliumLocalRedirectPolicy.create }}{{ $_ := set $base "accept-direct-connections" true }}{{ end }}
{{- $fullname := include "rolegate.fullname" . }}
{{- $all := list }}
{{- $taken := list }}
{{- range .Values.nodePools.pools }}
{{- $values := default (list .name) .values }}
{{- $flags := deepCopy $base }}
{{- range $name, $value := default dict .flags }}
{{- if kindIs "invalid" $value }}{{ $_ := unset $flags $name }}{{ else }}{{ $_ := set $flags $name $value }}{{ end }}
{{- end }}
{{- range $values }}
{{- if has . $taken }}{{ fail (printf "nodePools: two pools have the value %q" .) }}{{ end }}
{{- $taken = append $taken . }}
{{- end }}
{{- $all = append $all (dict "name" (printf "%s-%s" $fullname .name | trunc 63 | trimSuffix "-") "pool" .name "values" $values "flags" $flags) }}
{{- end }}
{{- if $taken }}{{ $_ := required "nodePools.label is required if there are pools" .Values.nodePools.label }}{{ end }}
{{- prepend $all (dict "name" $fullname "pool" "" "not" $taken "flags" $base) | toJson }}
{{- end }}

{{- /* The arguments that follow from flags (`true` for a switch, numbers, texts and lists). */}}
{{- define "rolegate.arguments" -}}
{{- range $name, $value := . }}
{{- if and (eq $name "self-test") (kindIs "bool" $value) }}
{{- /* YAML reads on and off as true and false. */}}
- {{ printf "--self-test=%s" (ternary "on" "off" $value) | quote }}
{{- else if and (kindIs "bool" $value) $value }}
- {{ printf "--%s" $name | quote }}
{{- else if kindIs "slice" $value }}
- {{ printf "--%s=%s" $name (join "," $value) | quote }}
{{- else if kindIs "string" $value }}
- {{ printf "--%s=%s" $name $value | quote }}
{{- else }}
{{- /* JSON writes large numbers without an exponent. */}}
- {{ printf "--%s=%s" $name (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Every document of a file of daemonset/, with the labels of the release, as a JSON list. */}}
{{- define "rolegate.documents" -}}
{{- $root := .root }}
{{- $labels := include "rolegate.labels" $root | fromYaml }}
{{- $documents := list }}
{{- range regexSplit "(?m)^---$" .text -1 }}
{{- $document := fromYaml . }}
{{- $_ := set $document.metadata "labels" $labels }}
{{- $documents = append $documents $document }}
{{- end }}
{{- $documents | toJson }}
{{- end }}

{{- define "rolegate.print" -}}
{{- range . }}
---
{{ toYaml . }}
{{- end }}
{{- end }}
