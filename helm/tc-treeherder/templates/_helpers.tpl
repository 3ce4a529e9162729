{{- define "tc-treeherder.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What a selector names: (list root component) */}}
{{- define "tc-treeherder.selector" -}}
app.kubernetes.io/name: {{ default (index . 0).Chart.Name (index . 0).Values.nameOverride }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* (list root component) */}}
{{- define "tc-treeherder.labels" -}}
{{ include "tc-treeherder.selector" . }}
{{- with index . 0 }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}
{{- end -}}

{{- define "tc-treeherder.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tc-treeherder.secretName" -}}
{{- default (include "tc-treeherder.fullname" .) .Values.existingSecret -}}
{{- end -}}

{{- define "tc-treeherder.serviceAccountName" -}}
{{- default (ternary (include "tc-treeherder.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* The chart's own Secret: environment variable -> value */}}
{{- define "tc-treeherder.secrets" -}}
{{- with .Values.database.url }}
TC_TREEHERDER_DATABASE_URL: {{ . | quote }}
{{- end }}
{{- with .Values.secrets }}
TC_TREEHERDER_WEBHOOK_SECRETS: {{ .webhook | toJson | quote }}
TC_TREEHERDER_TOKENS: {{ .tokens | toJson | quote }}
{{- with .taskcluster.accessToken }}
TC_TREEHERDER_TASKCLUSTER__ACCESS_TOKEN: {{ . | quote }}
{{- end }}
{{- with .taskcluster.certificate }}
TC_TREEHERDER_TASKCLUSTER__CERTIFICATE: {{ . | quote }}
{{- end }}
{{- with .pulse.url }}
TC_TREEHERDER_PULSE__URL: {{ . | quote }}
{{- end }}
{{- with .sentryDsn }}
TC_TREEHERDER_SENTRY_DSN: {{ . | quote }}
{{- end }}
{{- if .environments }}
{{- $environments := dict }}
{{- range $prefix, $secret := .environments }}
{{- $_ := set $environments $prefix (dict "secret" $secret) }}
{{- end }}
TC_TREEHERDER_ENVIRONMENTS: {{ $environments | toJson | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Variables from the Secret, where the Secret has them: (list root (list name…) optional) */}}
{{- define "tc-treeherder.secretEnv" -}}
{{- $root := index . 0 }}
{{- $optional := index . 2 }}
{{- $own := include "tc-treeherder.secrets" $root | fromYaml }}
{{- range index . 1 }}
{{- if or $root.Values.existingSecret (hasKey $own .) }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ include "tc-treeherder.secretName" $root }}
      key: {{ . }}
      {{- if and $optional $root.Values.existingSecret }}
      optional: true
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* `serve` and `db upgrade` */}}
{{- define "tc-treeherder.serviceEnv" -}}
- name: TC_TREEHERDER_CONFIG
  value: /etc/tc-treeherder/settings.yaml
{{- if .Values.persistence.enabled }}
- name: TC_TREEHERDER_DATABASE_URL
  value: sqlite+aiosqlite:////data/tc-treeherder.sqlite
{{- else }}
{{- include "tc-treeherder.secretEnv" (list . (list "TC_TREEHERDER_DATABASE_URL") false) }}
{{- end }}
{{- include "tc-treeherder.secretEnv" (list . (list "TC_TREEHERDER_WEBHOOK_SECRETS" "TC_TREEHERDER_TOKENS") false) }}
{{- include "tc-treeherder.secretEnv" (list . (list "TC_TREEHERDER_TASKCLUSTER__ACCESS_TOKEN" "TC_TREEHERDER_TASKCLUSTER__CERTIFICATE" "TC_TREEHERDER_PULSE__URL" "TC_TREEHERDER_ENVIRONMENTS" "TC_TREEHERDER_SENTRY_DSN") true) }}
{{- include "tc-treeherder.extraEnv" . }}
{{- end -}}

{{/* extraEnv, with the service's name in NO_PROXY where there is a proxy: no proxy knows it, and listeners call it. */}}
{{- define "tc-treeherder.extraEnv" -}}
{{- $service := include "tc-treeherder.fullname" . }}
{{- $proxied := false }}
{{- $excepted := false }}
{{- range .Values.extraEnv }}
{{- $name := upper .name }}
{{- if eq $name "NO_PROXY" }}
{{- $excepted = true }}
{{- if and .value (ne .value "*") }}
- name: {{ .name }}
  value: {{ printf "%s,%s" .value $service | quote }}
{{- else }}
{{ list . | toYaml }}
{{- end }}
{{- else }}
{{- if has $name (list "HTTP_PROXY" "HTTPS_PROXY" "ALL_PROXY") }}
{{- $proxied = true }}
{{- end }}
{{ list . | toYaml }}
{{- end }}
{{- end }}
{{- if and $proxied (not $excepted) }}
- name: NO_PROXY
  value: {{ $service | quote }}
{{- end }}
{{- end -}}

{{/* A listener gets the secrets that it needs and no more: (list root (list name…)) */}}
{{- define "tc-treeherder.listenerEnv" -}}
- name: TC_TREEHERDER_CONFIG
  value: /etc/tc-treeherder/settings.yaml
{{- with index . 0 }}
- name: TC_TREEHERDER_SERVICE_URL
  value: http://{{ include "tc-treeherder.fullname" . }}:{{ .Values.service.port }}
{{- end }}
{{- include "tc-treeherder.secretEnv" (list (index . 0) (index . 1) false) }}
{{- include "tc-treeherder.secretEnv" (list (index . 0) (list "TC_TREEHERDER_SENTRY_DSN") true) }}
{{- include "tc-treeherder.extraEnv" (index . 0) }}
{{- end -}}

{{/* What all containers have in common */}}
{{- define "tc-treeherder.container" -}}
image: {{ include "tc-treeherder.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tc-treeherder.mounts" -}}
- name: config
  mountPath: /etc/tc-treeherder
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tc-treeherder.pushlogListener" -}}
name: pushlog-listener
{{ include "tc-treeherder.container" . }}
args: [listen, pushlog]
env:
  - name: TC_TREEHERDER_PROBE_HOST
    value: 0.0.0.0
  - name: TC_TREEHERDER_PROBE_PORT
    value: "8082"
  {{- include "tc-treeherder.listenerEnv" (list . (list "TC_TREEHERDER_WEBHOOK_SECRETS")) | nindent 2 }}
ports:
  - name: pushlog-probe
    containerPort: 8082
resources:
  {{- toYaml .Values.listeners.pushlog.resources | nindent 2 }}
volumeMounts:
  {{- include "tc-treeherder.mounts" . | nindent 2 }}
{{- end -}}

{{- define "tc-treeherder.pulseListener" -}}
name: pulse-listener
{{ include "tc-treeherder.container" . }}
args: [listen, pulse]
env:
  - name: TC_TREEHERDER_PROBE_HOST
    value: 0.0.0.0
  - name: TC_TREEHERDER_PROBE_PORT
    value: "8081"
  {{- include "tc-treeherder.listenerEnv" (list . (list "TC_TREEHERDER_WEBHOOK_SECRETS" "TC_TREEHERDER_PULSE__URL")) | nindent 2 }}
ports:
  - name: pulse-probe
    containerPort: 8081
# 503 while the broker is away for settings.listeners.unhealthy_after. Ten minutes of that, for after less than ten
# Kubernetes waits ever longer between restarts, and nobody would read when the broker is back.
livenessProbe:
  httpGet: {path: /__lbheartbeat__, port: pulse-probe}
  periodSeconds: 30
  timeoutSeconds: 5
  failureThreshold: 20
resources:
  {{- toYaml .Values.listeners.pulse.resources | nindent 2 }}
volumeMounts:
  {{- include "tc-treeherder.mounts" . | nindent 2 }}
{{- end -}}

{{/* metadata of a pod: (list root component) */}}
{{- define "tc-treeherder.podMetadata" -}}
{{- $root := index . 0 -}}
annotations:
  checksum/config: {{ include "tc-treeherder.config" $root | sha256sum }}
  {{- if not $root.Values.existingSecret }}
  checksum/secret: {{ include "tc-treeherder.secrets" $root | sha256sum }}
  {{- end }}
  {{- with $root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "tc-treeherder.labels" . | nindent 2 }}
  {{- with $root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* What the specs of all pods have in common, but for volumes: (list root component) */}}
{{- define "tc-treeherder.podSpec" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- with index . 0 -}}
serviceAccountName: {{ include "tc-treeherder.serviceAccountName" . }}
automountServiceAccountToken: false
# Kubernetes would set TC_TREEHERDER_PORT=tcp://… for a Service of that name, and the settings read that
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
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
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "tc-treeherder.selector" (list $root $component) | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "tc-treeherder.volumes" -}}
- name: config
  configMap:
    name: {{ include "tc-treeherder.fullname" . }}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The file of the ConfigMap, which service and listeners share */}}
{{- define "tc-treeherder.config" -}}
settings.yaml: |
  {{- toYaml .Values.settings | nindent 2 }}
{{- end -}}

{{/* The URL of a host of the Ingress, with https where it ends TLS for that host: (list root host) */}}
{{- define "tc-treeherder.ingressUrl" -}}
{{- $root := index . 0 -}}
{{- $host := index . 1 -}}
{{- $scheme := "http" -}}
{{- range $root.Values.ingress.tls -}}
{{- if or (not .hosts) (has $host .hosts) (has (regexReplaceAll "^[^.]+" $host "*") .hosts) -}}
{{- $scheme = "https" -}}
{{- end -}}
{{- end -}}
{{- $scheme }}://{{ $host -}}
{{- end -}}

{{/* Where people reach the service, without a slash at its end; empty where only the cluster does */}}
{{- define "tc-treeherder.publicUrl" -}}
{{- if .Values.settings.public_url -}}
{{- trimSuffix "/" .Values.settings.public_url -}}
{{- else if .Values.ingress.enabled -}}
{{- include "tc-treeherder.ingressUrl" (list . (first .Values.ingress.hosts)) -}}
{{- end -}}
{{- end -}}
