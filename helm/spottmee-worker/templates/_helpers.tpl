{{/*
The name of everything: the release's. At most 46 characters, so that every suffix fits: a CronJob's name has at most
52 (-debug), and a ScaledJob's with KEDA's -xxxxx behind it at most 63 (-process). A longer name is cut, and ends in a
hash of the whole: two long names never become one.
*/}}
{{- define "spottmee-worker.fullname" -}}
{{- $name := .Values.fullnameOverride | default .Release.Name -}}
{{- if gt (len $name) 46 -}}
{{- printf "%s-%s" (trunc 37 $name | trimSuffix "-" | trimSuffix ".") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* Labels by which a part of this release is found. Takes root and component. */}}
{{- define "spottmee-worker.selectorLabels" -}}
app.kubernetes.io/name: spottmee-worker
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels of every object. Takes root and, where the object belongs to one, component. */}}
{{- define "spottmee-worker.labels" -}}
{{ include "spottmee-worker.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/*
What keeps KEDA from starting Jobs, as far as the cluster shows it while the notes are written, which is before an
install or upgrade: Services that the values name, and READY of the ScaledJobs that are there already.
*/}}
{{- define "spottmee-worker.notReady" -}}
{{- if and .Values.checkCluster (include "spottmee-worker.hasCluster" .) -}}
{{- range include "spottmee-worker.redis.hosts" . | fromYamlArray | uniq -}}
{{- if and (not (contains "." .)) (not (lookup "v1" "Service" $.Release.Namespace .)) }}
WARNING   There is no Service {{ . }} in {{ $.Release.Namespace }} yet: neither KEDA nor the pods find Redis. Create it, or name
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

{{/* Metadata of what the pod of helm test needs: there for the time of the test alone. Takes root and component. */}}
{{- define "spottmee-worker.testMetadata" -}}
name: {{ printf "%s-test" (include "spottmee-worker.fullname" .root) | quote }}
labels:
  {{- include "spottmee-worker.labels" . | nindent 2 }}
annotations:
  helm.sh/hook: test
  helm.sh/hook-weight: "-10"
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- define "spottmee-worker.image" -}}
{{- $image := .Values.image -}}
{{- $tag := $image.tag | default (printf "%s%s" .Chart.AppVersion (eq $image.flavour "gpu" | ternary "-gpu" "")) -}}
{{- printf "%s:%s%s" $image.repository $tag (empty $image.digest | ternary "" (printf "@%s" $image.digest)) -}}
{{- end -}}

{{- define "spottmee-worker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "spottmee-worker.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/*
The name of the Secret that holds something. Takes root, inline (the value itself, where the chart holds it), existing
(the name that the values give), and copy (the suffix of the chart's Secret: a hook has its own).
*/}}
{{- define "spottmee-worker.secretName" -}}
{{- if .inline -}}
{{- printf "%s-%s" (include "spottmee-worker.fullname" .root) (.copy | default "inline") -}}
{{- else -}}
{{- .existing | default (include "spottmee-worker.fullname" .root) -}}
{{- end -}}
{{- end -}}

{{/* The values that the chart itself keeps in a Secret, as its stringData. Takes root, and migration: those alone. */}}
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

{{/* A setting as the environment has it: YAML's numbers are floats to helm, and 33554432 must not become 3.3e+07. */}}
{{- define "spottmee-worker.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}
