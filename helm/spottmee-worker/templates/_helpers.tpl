{{/*
The name of every object: that of the release, and for an alias in a parent chart RELEASE-ALIAS. At most 46 characters,
so that every suffix fits: a CronJob's name may have 52 (-debug), and a ScaledJob's, with KEDA's suffix -xxxxx, 63
(-process). A longer name is truncated and ends in a hash of the full name, so that two long names never collide.
*/}}
{{- define "spottmee-worker.fullname" -}}
{{- $alias := eq .Chart.Name "spottmee-worker" | ternary "" (printf "-%s" .Chart.Name) -}}
{{- $name := .Values.fullnameOverride | default (printf "%s%s" .Release.Name $alias) -}}
{{- if gt (len $name) 46 -}}
{{- printf "%s-%s" (trunc 37 $name | trimSuffix "-" | trimSuffix ".") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/*
What `status`, `doctor` and selectors call the release. A parent chart can have this chart several times in one release,
so there it is the name of the objects, which differs between them.
*/}}
{{- define "spottmee-worker.instance" -}}
{{- .Chart.IsRoot | ternary .Release.Name (include "spottmee-worker.fullname" .) -}}
{{- end -}}

{{/* Labels that select a component of this release. Takes root and component. */}}
{{- define "spottmee-worker.selectorLabels" -}}
app.kubernetes.io/name: spottmee-worker
app.kubernetes.io/instance: {{ include "spottmee-worker.instance" .root | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels by which the chart and other tools select an object. Takes the same as labels. */}}
{{- define "spottmee-worker.ownLabels" -}}
{{- $own := include "spottmee-worker.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ = set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ = set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63) -}}
{{- toYaml $own -}}
{{- end -}}

{{/* Labels of every object. Takes root and, where the object belongs to one, component. */}}
{{- define "spottmee-worker.labels" -}}
{{- toYaml (merge (include "spottmee-worker.ownLabels" . | fromYaml) .root.Values.commonLabels) -}}
{{- end -}}

{{/*
A list of maps as one, in YAML; the first that has a key determines its value. sprig's `merge` takes a later one instead
of false, 0 or "".
*/}}
{{- define "spottmee-worker.merged" -}}
{{- $merged := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}
{{- $first := get $merged $key -}}
{{- if not (hasKey $merged $key) -}}
{{- $_ := set $merged $key $value -}}
{{- else if and (kindIs "map" $first) (kindIs "map" $value) -}}
{{- $_ := set $merged $key (include "spottmee-worker.merged" (list $first $value) | fromYaml) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $merged }}{{ toYaml $merged }}{{ end -}}
{{- end -}}

{{/*
Metadata of an object. Takes root, component (like labels), name (or suffix, which is appended to the release's name),
and the object's own annotations.
*/}}
{{- define "spottmee-worker.metadata" -}}
name: {{ .name | default (printf "%s%s" (include "spottmee-worker.fullname" .root) (.suffix | default "")) | quote }}
labels:
  {{- include "spottmee-worker.labels" . | nindent 2 }}
{{- with include "spottmee-worker.merged" (list .annotations .root.Values.commonAnnotations) }}
annotations:
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
Warnings about what prevents KEDA from starting Jobs. The notes are rendered before an install or upgrade, so this can
only check whether the Services named in the values exist, and whether existing ScaledJobs are READY.
*/}}
{{- define "spottmee-worker.notReady" -}}
{{- if and .Values.checkCluster (include "spottmee-worker.hasCluster" .) -}}
{{- range include "spottmee-worker.redis.hosts" . | fromYamlArray | uniq -}}
{{- if and (not (contains "." .)) (not (lookup "v1" "Service" $.Release.Namespace .)) }}
WARNING   There is no Service {{ . }} in {{ $.Release.Namespace }} yet: neither KEDA nor the pods can find Redis. Create it, or name
          another (--set redis.host=NAME.NAMESPACE.svc).
{{ end -}}
{{- end -}}
{{- range $queue, $values := .Values.queues -}}
{{- $scaled := lookup "keda.sh/v1alpha1" "ScaledJob" $.Release.Namespace (printf "%s-%s" (include "spottmee-worker.fullname" $) $queue) -}}
{{- range dig "status" "conditions" list $scaled -}}
{{- if and (eq .type "Ready") (ne .status "True") }}
WARNING   {{ $scaled.metadata.name }} was not READY before this {{ $.Release.IsUpgrade | ternary "upgrade" "install" }} ({{ regexReplaceAll "[[:cntrl:]]+" (printf "%s: %s" .reason .message) " " }}).
{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Metadata of an object for the Prometheus operator or Grafana. Takes the same as metadata, and additional labels. */}}
{{- define "spottmee-worker.monitoringMetadata" -}}
{{- $metadata := include "spottmee-worker.metadata" . | fromYaml -}}
{{- $_ := set $metadata "labels" (include "spottmee-worker.merged" (list $metadata.labels .labels) | fromYaml) -}}
{{- toYaml $metadata -}}
{{- end -}}

{{/* The names of the queues that this release serves. */}}
{{- define "spottmee-worker.enabledQueues" -}}
{{- $names := list -}}
{{- range $name, $queue := .Values.queues }}{{ if $queue.enabled }}{{ $names = append $names $name }}{{ end }}{{ end -}}
{{- toYaml $names -}}
{{- end -}}

{{/* The image. Takes root, and queue: the values of a queue, whose own image takes precedence. */}}
{{- define "spottmee-worker.image" -}}
{{- $common := .root.Values.image -}}
{{- $own := .queue.image | default dict -}}
{{- $gpu := eq (include "spottmee-worker.flavour" .) "gpu" | ternary "-gpu" "" -}}
{{- $repository := $own.repository | default $common.repository -}}
{{- with .root.Values.global.imageRegistry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") -}}
{{- end -}}
{{- $tag := $own.tag | default $common.tag | default (printf "%s%s" .root.Chart.AppVersion $gpu) -}}
{{- $released := empty $common.tag | ternary (get $common.digests (include "spottmee-worker.flavour" .)) "" -}}
{{- $digest := $own.digest | default (empty (or $own.repository $own.tag) | ternary ($common.digest | default $released) "") -}}
{{- printf "%s:%s%s" $repository $tag (empty $digest | ternary "" (printf "@%s" $digest)) -}}
{{- end -}}

{{/* Which image of a version a pod runs: cpu or gpu. Takes queue. */}}
{{- define "spottmee-worker.flavour" -}}
{{- empty (int .queue.gpu.count) | ternary "cpu" "gpu" -}}
{{- end -}}

{{/* Secrets with registry credentials, as a list of names. */}}
{{- define "spottmee-worker.pullSecrets" -}}
{{- $names := list -}}
{{- range concat .Values.image.pullSecrets .Values.global.imagePullSecrets -}}
{{- $names = append $names (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) -}}
{{- end -}}
{{- toYaml (uniq $names) -}}
{{- end -}}

{{- define "spottmee-worker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "spottmee-worker.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/*
The name of the Secret that holds a value. Takes root, inline (the value itself, if the chart stores it), existing (the
Secret named in the values), and copy (the suffix of the chart's own Secret: a hook has a separate one).
*/}}
{{- define "spottmee-worker.secretName" -}}
{{- if .inline -}}
{{- printf "%s-%s" (include "spottmee-worker.fullname" .root) (.copy | default "inline") -}}
{{- else -}}
{{- .existing | default (include "spottmee-worker.fullname" .root) -}}
{{- end -}}
{{- end -}}

{{/* The values that the chart itself stores in a Secret, as stringData. Takes root, and migration: only what it needs. */}}
{{- define "spottmee-worker.inlineSecrets" -}}
{{- $values := .root.Values -}}
{{- $secrets := dict -}}
{{- with $values.database.url }}{{ $_ := set $secrets "DATABASE_URL" . }}{{ end -}}
{{- with $values.embeddingsDatabase.url }}{{ $_ := set $secrets "EMBEDDINGS_DATABASE_URL" . }}{{ end -}}
{{- if not .migration -}}
{{- with $values.redis.auth.password }}{{ $_ := set $secrets "REDIS_PASSWORD" . }}{{ end -}}
{{- with $values.redis.sentinel.auth.password }}{{ $_ := set $secrets "REDIS_SENTINEL_PASSWORD" . }}{{ end -}}
{{- with $values.redis.tls.ca }}{{ $_ := set $secrets "ca.crt" . }}{{ end -}}
{{- with $values.redis.tls.certificate }}{{ $_ := set $secrets "tls.crt" . }}{{ end -}}
{{- with $values.redis.tls.privateKey }}{{ $_ := set $secrets "tls.key" . }}{{ end -}}
{{- end -}}
{{- if $secrets }}{{ toYaml $secrets }}{{ end -}}
{{- end -}}

{{/* A setting as an environment variable. Helm reads YAML numbers as floats, and 33554432 must not become 3.3e+07. */}}
{{- define "spottmee-worker.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* The ports of PostgreSQL, as a list. */}}
{{- define "spottmee-worker.databasePorts" -}}
{{- $ports := .Values.networkPolicy.databasePorts -}}
{{- range list .Values.database .Values.embeddingsDatabase }}{{ if .host }}{{ $ports = append $ports .port }}{{ end }}{{ end -}}
{{- toYaml $ports -}}
{{- end -}}

{{/* Egress to the cluster's DNS, and to Redis and PostgreSQL on the given ports. Takes root and ports. */}}
{{- define "spottmee-worker.egress.servers" -}}
{{- $policy := .root.Values.networkPolicy -}}
- ports:
    {{- range $policy.dnsPorts }}
    - {port: {{ int . }}, protocol: UDP}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
  {{- with $policy.dnsPeers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- /* A rule without ports would allow all of them. */}}
{{- if .ports }}
- ports:
    {{- $seen := dict }}
    {{- range .ports }}
    {{- if not (hasKey $seen (int . | toString)) }}
    - {port: {{ int . }}, protocol: TCP}
    {{- $_ := set $seen (int . | toString) true }}
    {{- end }}
    {{- end }}
  {{- with $policy.serverPeers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}
