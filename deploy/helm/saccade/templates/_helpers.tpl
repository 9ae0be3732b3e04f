{{- define "saccade.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "saccade.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "saccade.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ .Chart.Name }}
{{ include "saccade.selector" . }}
{{- end -}}

{{- define "saccade.image" -}}
{{- $tag := .Values.image.tag | default (ternary (printf "%s-gpu" .Chart.AppVersion) .Chart.AppVersion .Values.gpu.enabled) -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}

{{- define "saccade.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "saccade.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "saccade.keysSecret" -}}
{{- .Values.keys.existingSecret.name | default (printf "%s-keys" (include "saccade.fullname" .)) -}}
{{- end -}}

{{- /* "true" where the server has keys that this chart knows of. */ -}}
{{- define "saccade.hasKeys" -}}
{{- if or .Values.keys.api .Values.keys.admin .Values.keys.existingSecret.name -}}true{{- end -}}
{{- end -}}

{{- /* The entries of the Secret by kind of key, as JSON. */ -}}
{{- define "saccade.keyEntries" -}}
{{- $entries := dict -}}
{{- with .Values.keys.existingSecret -}}
{{- if and .name .apiEntry }}{{ $_ := set $entries "api" .apiEntry }}{{ end -}}
{{- if and .name .adminEntry }}{{ $_ := set $entries "admin" .adminEntry }}{{ end -}}
{{- end -}}
{{- if .Values.keys.api }}{{ $_ := set $entries "api" "api-keys" }}{{ end -}}
{{- if .Values.keys.admin }}{{ $_ := set $entries "admin" "admin-keys" }}{{ end -}}
{{- toJson $entries -}}
{{- end -}}

{{- /* What would be wrong together, said before anything is made. */ -}}
{{- define "saccade.check" -}}
{{- $own := .Values.keys.existingSecret.name -}}
{{- if and $own (or .Values.keys.api .Values.keys.admin) }}{{ fail "keys.existingSecret is instead of keys.api and keys.admin: give one of them" }}{{ end -}}
{{- if and .Values.models.existingClaim .Values.models.volume }}{{ fail "models.existingClaim and models.volume: give one of them" }}{{ end -}}
{{- if and .Values.models.volume .Values.models.pull }}{{ fail "models.pull installs into models.existingClaim or a folder of the pod's own, not into models.volume" }}{{ end -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}{{ fail "autoscaling and keda would both set the number of pods: enable one of them" }}{{ end -}}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.cpuUtilization) (not .Values.autoscaling.queueDepth) }}{{ fail "autoscaling needs cpuUtilization or queueDepth" }}{{ end -}}
{{- if and .Values.keda.enabled (not .Values.keda.prometheus) }}{{ fail "keda.prometheus is needed: the address of Prometheus, like http://prometheus.monitoring:9090" }}{{ end -}}
{{- range $name := list "autoscaling" "keda" -}}
{{- $scaled := index $.Values $name -}}
{{- if and $scaled.enabled (gt (int $scaled.minReplicas) (int $scaled.maxReplicas)) }}{{ fail (printf "%s.minReplicas is %d, and at most maxReplicas (%d) is possible" $name (int $scaled.minReplicas) (int $scaled.maxReplicas)) }}{{ end -}}
{{- end -}}
{{- if and (regexMatch "^0%?$" (.Values.rollingUpdate.maxSurge | toString)) (regexMatch "^0%?$" (.Values.rollingUpdate.maxUnavailable | toString)) }}{{ fail "rollingUpdate.maxSurge and maxUnavailable are both 0, so no pod could ever be replaced: raise one of them" }}{{ end -}}
{{- if eq (int .Values.settings.port) 0 }}{{ fail "settings.port is 0, any free one, which no service and no probe would find: give a number" }}{{ end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}{{ fail "ingress.hosts is needed: the names by which clients reach the server, like [vision.example.org]" }}{{ end -}}
{{- with .Values.serviceMonitor }}{{ if and .enabled .keySecret.name (not .keySecret.key) }}{{ fail "serviceMonitor.keySecret.key is needed: the entry of the Secret that holds the key" }}{{ end }}{{ end -}}
{{- $access := .Values.settings.metrics_access | default "key" -}}
{{- if and .Values.serviceMonitor.enabled (eq $access "off") }}{{ fail "serviceMonitor needs metrics, which settings.metrics_access turns off" }}{{ end -}}
{{- if and .Values.serviceMonitor.enabled (eq $access "key") (include "saccade.hasKeys" .) (not .Values.serviceMonitor.keySecret.name) }}{{ fail "with keys, /metrics asks for one: give serviceMonitor.keySecret, or set settings.metrics_access to open" }}{{ end -}}
{{- end -}}

{{- /* "true" where a repository is mounted. */ -}}
{{- define "saccade.hasModels" -}}
{{- if or .Values.models.existingClaim .Values.models.volume .Values.models.pull -}}true{{- end -}}
{{- end -}}

{{- define "saccade.scheme" -}}
{{- ternary "HTTPS" "HTTP" (not (empty .Values.tls.secretName)) -}}
{{- end -}}

{{- /* Seconds between "not ready" and a closed port: until balancers have noticed. */ -}}
{{- define "saccade.drainDelay" -}}
{{- $probe := .Values.probes.readiness -}}
{{- $noticed := add (mul $probe.periodSeconds $probe.failureThreshold) 3 -}}
{{- if hasKey .Values.settings "drain_delay_s" -}}{{ .Values.settings.drain_delay_s }}{{- else -}}{{ $noticed }}{{- end -}}
{{- end -}}

{{- /* The server ends by itself at the latest 10 s after both. */ -}}
{{- define "saccade.terminationGrace" -}}
{{- addf (include "saccade.drainDelay" . | float64) (float64 .Values.settings.grace_s) 10 | ceil | int -}}
{{- end -}}

{{- /* All settings as JSON: what follows from other values, then what was set. */ -}}
{{- define "saccade.settings" -}}
{{- /* The root of a volume belongs to root and to a group that may write; the server trusts only a
folder that it has made itself. */ -}}
{{- $all := dict "cache" "/var/cache/saccade/compiled" "drain_delay_s" (include "saccade.drainDelay" .) -}}
{{- if include "saccade.hasModels" . }}{{ $_ := set $all "repository" "/models" }}{{ end -}}
{{- /* Every GPU of the pod; without any it does not start, instead of falling back. */ -}}
{{- if .Values.gpu.enabled }}{{ $_ := set $all "device" "cuda" }}{{ end -}}
{{- range $kind, $entry := fromJson (include "saccade.keyEntries" .) -}}
{{- $_ := set $all (printf "%s_keys_file" $kind) (printf "/etc/saccade/keys/%s" $entry) -}}
{{- end -}}
{{- if .Values.tls.secretName -}}
{{- $_ := set $all "tls_certificate" "/etc/saccade/tls/tls.crt" -}}
{{- $_ := set $all "tls_key" "/etc/saccade/tls/tls.key" -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- /* A whole number must not become 2.68435456e+08. */ -}}
{{- $_ := set $all $name (ternary ($value | toString) (include "saccade.number" $value) (kindIs "string" $value)) -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{- define "saccade.number" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{- /* Ports that models are pulled from, as JSON: that of HTTPS, and those that sources name. */ -}}
{{- define "saccade.pullPorts" -}}
{{- $ports := list 443 -}}
{{- range .Values.models.pull -}}
{{- $host := regexReplaceAll "^[^:]*://([^/?#]*).*$" . "${1}" -}}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- $plain := regexMatch "^(oci[+])?http://" . -}}
{{- $ports = append $ports (int ($port | default (ternary "80" "443" $plain))) -}}
{{- end -}}
{{- toJson (uniq $ports) -}}
{{- end -}}
