{{- define "saccade.pod" -}}
serviceAccountName: {{ include "saccade.serviceAccount" . }}
automountServiceAccountToken: false
# Kubernetes would add variables of its own, SACCADE_SERVICE_HOST and SACCADE_PORT.
enableServiceLinks: false
# How long the server may take to end: drain_delay_s + grace_s + 10.
terminationGracePeriodSeconds: {{ include "saccade.terminationGrace" . }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.models.pull }}
initContainers:
  {{- range $index, $source := . }}
  - name: pull-{{ $index }}
    {{- include "saccade.container" $ | nindent 4 }}
    args: [pull, {{ $source | quote }}, --repository, /models]
    env:
      # Kept where other pods find it; in a folder of the pod's own it would only lie there twice.
      - {name: SACCADE_CACHE, value: {{ ternary "/var/cache/saccade" "off" (not (empty $.Values.cache.existingClaim)) | quote }}}
      {{- with $.Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $.Values.models.pullEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    resources:
      requests: {cpu: 100m, memory: 256Mi}
      limits: {memory: 1Gi}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: cache, mountPath: /var/cache/saccade}
      - name: models
        mountPath: /models
        {{- with $.Values.models.subPath }}
        subPath: {{ . }}
        {{- end }}
      {{- with $.Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  {{- end }}
{{- end }}
containers:
  - name: saccade
    {{- include "saccade.container" . | nindent 4 }}
    args: [serve]
    envFrom:
      - configMapRef: {name: {{ include "saccade.fullname" . }}}
    {{- with .Values.extraEnv }}
    env:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    ports:
      - {name: http, containerPort: {{ .Values.settings.port }}, protocol: TCP}
    startupProbe:
      {{- include "saccade.probe" (dict "root" . "path" "/startupz" "times" .Values.probes.startup) | nindent 6 }}
    readinessProbe:
      {{- include "saccade.probe" (dict "root" . "path" "/readyz" "times" .Values.probes.readiness) | nindent 6 }}
    livenessProbe:
      {{- include "saccade.probe" (dict "root" . "path" "/livez" "times" .Values.probes.liveness) | nindent 6 }}
    resources:
      {{- include "saccade.resources" . | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: cache, mountPath: /var/cache/saccade}
      {{- if include "saccade.hasModels" . }}
      - name: models
        mountPath: /models
        readOnly: true
        {{- with .Values.models.subPath }}
        subPath: {{ . }}
        {{- end }}
      {{- end }}
      {{- if include "saccade.hasKeys" . }}
      - {name: keys, mountPath: /etc/saccade/keys, readOnly: true}
      {{- end }}
      {{- if .Values.tls.secretName }}
      - {name: tls, mountPath: /etc/saccade/tls, readOnly: true}
      {{- end }}
      {{- with .Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: {{ .Values.tmp.sizeLimit }}}
  - name: cache
    {{- if .Values.cache.existingClaim }}
    persistentVolumeClaim: {claimName: {{ .Values.cache.existingClaim }}}
    {{- else }}
    emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
    {{- end }}
  {{- if include "saccade.hasModels" . }}
  - name: models
    {{- include "saccade.modelsVolume" . | nindent 4 }}
  {{- end }}
  {{- if include "saccade.hasKeys" . }}
  - name: keys
    secret: {secretName: {{ include "saccade.keysSecret" . }}, defaultMode: 0440}
  {{- end }}
  {{- with .Values.tls.secretName }}
  - name: tls
    secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{ include "saccade.placement" . | trim }}
{{- end -}}

{{- define "saccade.container" -}}
image: {{ include "saccade.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "saccade.probe" -}}
httpGet: {path: {{ .path }}, port: http, scheme: {{ include "saccade.scheme" .root }}}
{{ toYaml .times }}
{{- end -}}

{{- define "saccade.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.enabled -}}
{{- $_ := set $resources "limits" (set ($resources.limits | default dict) .Values.gpu.resource (int .Values.gpu.count)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "saccade.modelsVolume" -}}
{{- if .Values.models.existingClaim -}}
persistentVolumeClaim: {claimName: {{ .Values.models.existingClaim }}{{ if not .Values.models.pull }}, readOnly: true{{ end }}}
{{- else if .Values.models.volume -}}
{{- toYaml .Values.models.volume -}}
{{- else -}}
emptyDir: {sizeLimit: {{ .Values.models.pullSizeLimit }}}
{{- end -}}
{{- end -}}

{{- define "saccade.placement" -}}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .Values.tolerations -}}
{{- if and .Values.gpu.enabled .Values.gpu.tolerate -}}
{{- $tolerations = append $tolerations (dict "key" .Values.gpu.resource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if .Values.topologySpreadConstraints }}
  {{- toYaml .Values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "saccade.selector" $ | nindent 8 }}
  {{- end }}
  {{- end }}
{{- end -}}
