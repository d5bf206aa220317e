{{/* The name of all objects. */}}
{{- define "workspace-gateway.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 55 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 55 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "workspace-gateway.selector" -}}
app.kubernetes.io/name: workspace-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "workspace-gateway.labels" -}}
{{ include "workspace-gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* A value in TOML, in one line. Helm's toToml writes 3 as 3.0, which the gateway refuses. */}}
{{- define "workspace-gateway.toml" -}}
{{- if kindIs "map" . -}}
{ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }},{{ end }} {{ toRawJson $key }} = {{ "" -}}
{{- include "workspace-gateway.toml" (get $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "workspace-gateway.toml" $value }}{{ end }}]
{{- else if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else if kindIs "string" . -}}
{{ toRawJson . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* The settings that the chart makes of its values, over those of the user. */}}
{{- define "workspace-gateway.settings" -}}
{{- $secrets := "/run/secrets/workspace-gateway" -}}
{{- $settings := merge (deepCopy .Values.settings) (dict "log" (dict "format" "json")) -}}
{{- $listen := dict "proxy" "0.0.0.0:8443" "metrics" "0.0.0.0:9090"
    "cert_file" (printf "%s/tls.crt" $secrets) "key_file" (printf "%s/tls.key" $secrets) -}}
{{- if .Values.adminToken.secret -}}
{{- $_ := set $listen "admin_token" (dict "file" (printf "%s/admin-token" $secrets)) -}}
{{- end -}}
{{- $own := dict "region" .Values.region "listen" $listen -}}
{{- if .Values.fleet.enabled -}}
{{- $fleet := dict "engine" .Values.fleet.engine "secret" (dict "file" (printf "%s/fleet-secret" $secrets)) -}}
{{- with .Values.fleet.passwordItem -}}
{{- $_ := set $fleet "password" (dict "file" (printf "%s/%s" $secrets .)) -}}
{{- end -}}
{{- with .Values.fleet.caItem -}}
{{- $_ := set $fleet "ca_file" (printf "%s/%s" $secrets .) -}}
{{- end -}}
{{- $_ := set $own "fleet" $fleet -}}
{{- else -}}
{{- $_ := set $own "cache" (dict "snapshot" "/var/cache/workspace-gateway/snapshot") -}}
{{- end -}}
{{- $keys := list -}}
{{- range .Values.accessKeys.ids -}}
{{- $keys = append $keys (dict "id" . "secret" (dict "file" (printf "%s/access-keys/%s" $secrets .))) -}}
{{- end -}}
{{- if $keys -}}
{{- $_ := set $own "access_key" $keys -}}
{{- end -}}
{{- mergeOverwrite $settings $own | toJson -}}
{{- end -}}
