{{/*
Redis, from one set of values: both the runner's REDIS_URL and KEDA's triggers are rendered here, and nowhere else.
The names of KEDA's fields are those of its redis, redis-sentinel and redis-cluster scalers
(https://keda.sh/docs/latest/scalers/redis-lists/).
*/}}

{{/*
A host name that resolves to the same host for the pods and for KEDA's operator. A name without a dot is a Service of the
release's namespace; the operator would look it up in its own namespace. Takes root and host.
*/}}
{{- define "spottmee-worker.redis.resolvable" -}}
{{- if contains "." .host -}}{{ .host }}{{- else -}}{{ printf "%s.%s.svc" .host .root.Release.Namespace }}{{- end -}}
{{- end -}}

{{/* The host names in the values, as a list: redis.host, or those of redis.nodes. */}}
{{- define "spottmee-worker.redis.hosts" -}}
{{- $hosts := list -}}
{{- if eq .Values.redis.mode "standalone" -}}
{{- $hosts = append $hosts .Values.redis.host -}}
{{- else -}}
{{- range .Values.redis.nodes }}{{ $hosts = append $hosts (splitList ":" (toString .) | first) }}{{ end -}}
{{- end -}}
{{- toYaml $hosts -}}
{{- end -}}

{{/* The ports of Redis and its sentinels, as a list. */}}
{{- define "spottmee-worker.redis.ports" -}}
{{- $ports := list -}}
{{- if eq .Values.redis.mode "standalone" -}}
{{- $ports = append $ports (int .Values.redis.port) -}}
{{- else -}}
{{- range .Values.redis.nodes }}{{ $ports = append $ports (splitList ":" . | last | int) }}{{ end -}}
{{- if eq .Values.redis.mode "sentinel" }}{{ $ports = append $ports (int .Values.redis.port) }}{{ end -}}
{{- end -}}
{{- toYaml $ports -}}
{{- end -}}

{{- define "spottmee-worker.redis.addresses" -}}
{{- if eq .Values.redis.mode "standalone" -}}
{{- printf "%s:%d" (include "spottmee-worker.redis.resolvable" (dict "root" . "host" .Values.redis.host)) (int .Values.redis.port) -}}
{{- else -}}
{{- $addresses := list -}}
{{- range .Values.redis.nodes -}}
{{- $parts := splitList ":" (toString .) -}}
{{- $addresses = append $addresses (printf "%s:%s" (include "spottmee-worker.redis.resolvable" (dict "root" $ "host" (first $parts))) (last $parts)) -}}
{{- end -}}
{{- join "," $addresses -}}
{{- end -}}
{{- end -}}

{{/* The TLS files that are configured: file name → key in the Secret. */}}
{{- define "spottmee-worker.redis.certificates" -}}
{{- $tls := .Values.redis.tls -}}
{{- $files := dict -}}
{{- if $tls.enabled -}}
{{- if or $tls.ca $tls.caKey }}{{ $_ := set $files "ca.crt" (empty $tls.ca | ternary $tls.caKey "ca.crt") }}{{ end -}}
{{- if or $tls.certificate $tls.certificateKey }}{{ $_ := set $files "tls.crt" (empty $tls.certificate | ternary $tls.certificateKey "tls.crt") }}{{ end -}}
{{- if or $tls.privateKey $tls.privateKeyKey }}{{ $_ := set $files "tls.key" (empty $tls.privateKey | ternary $tls.privateKeyKey "tls.key") }}{{ end -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{- define "spottmee-worker.redis.certificateSecret" -}}
{{- $tls := .Values.redis.tls -}}
{{- include "spottmee-worker.secretName" (dict "root" . "inline" (or $tls.ca $tls.certificate $tls.privateKey) "existing" $tls.existingSecret) -}}
{{- end -}}

{{/* REDIS_URL. It contains no secret: user and password are separate settings, so that they need no escaping. */}}
{{- define "spottmee-worker.redis.url" -}}
{{- $redis := .Values.redis -}}
{{- $kind := eq $redis.mode "standalone" | ternary "" (printf "+%s" $redis.mode) -}}
{{- $path := printf "/%d" (int $redis.database) -}}
{{- if eq $redis.mode "sentinel" }}{{ $path = printf "/%s/%d" $redis.sentinel.master (int $redis.database) }}{{ end -}}
{{- if eq $redis.mode "cluster" }}{{ $path = "" }}{{ end -}}
{{- $query := list -}}
{{- $files := include "spottmee-worker.redis.certificates" . | fromYaml -}}
{{- range $file, $option := dict "ca.crt" "ssl_ca_certs" "tls.crt" "ssl_certfile" "tls.key" "ssl_keyfile" -}}
{{- if hasKey $files $file }}{{ $query = append $query (printf "%s=/etc/redis-tls/%s" $option $file) }}{{ end -}}
{{- end -}}
{{- if and $redis.tls.enabled $redis.tls.skipVerify }}{{ $query = concat $query (list "ssl_cert_reqs=none" "ssl_check_hostname=false") }}{{ end -}}
{{- printf "%s%s://%s%s" ($redis.tls.enabled | ternary "rediss" "redis") $kind (include "spottmee-worker.redis.addresses" .) $path -}}
{{- if $query }}?{{ join "&" $query }}{{ end -}}
{{- end -}}

{{/* The non-secret settings of Redis, as environment variables, where KEDA reads them too. */}}
{{- define "spottmee-worker.redis.plainEnv" -}}
REDIS_URL: {{ include "spottmee-worker.redis.url" . | quote }}
{{- with .Values.redis.username }}
REDIS_USERNAME: {{ . | quote }}
{{- end }}
{{- if eq .Values.redis.mode "sentinel" }}
{{- with .Values.redis.sentinel.username }}
REDIS_SENTINEL_USERNAME: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
Where Redis's secrets are: a list of variable (the runner's), parameter (KEDA's), name and key (the Secret's).
Parameters of certificates have no variable: their files are mounted.
*/}}
{{- define "spottmee-worker.redis.secrets" -}}
{{- $redis := .Values.redis -}}
{{- $auth := $redis.auth -}}
{{- $sentinel := $redis.sentinel.auth -}}
{{- $found := list -}}
{{- if $auth.enabled -}}
{{- $name := include "spottmee-worker.secretName" (dict "root" . "inline" $auth.password "existing" $auth.existingSecret) -}}
{{- if $auth.usernameKey }}{{ $found = append $found (dict "variable" "REDIS_USERNAME" "parameter" "username" "name" $name "key" $auth.usernameKey) }}{{ end -}}
{{- $found = append $found (dict "variable" "REDIS_PASSWORD" "parameter" "password" "name" $name "key" (empty $auth.password | ternary $auth.passwordKey "REDIS_PASSWORD")) -}}
{{- end -}}
{{- if and (eq $redis.mode "sentinel") $sentinel.enabled -}}
{{- $name := include "spottmee-worker.secretName" (dict "root" . "inline" $sentinel.password "existing" $sentinel.existingSecret) -}}
{{- $found = append $found (dict "variable" "REDIS_SENTINEL_PASSWORD" "parameter" "sentinelPassword" "name" $name "key" (empty $sentinel.password | ternary $sentinel.passwordKey "REDIS_SENTINEL_PASSWORD")) -}}
{{- end -}}
{{- $files := include "spottmee-worker.redis.certificates" . | fromYaml -}}
{{- $certificates := include "spottmee-worker.redis.certificateSecret" . -}}
{{- range $file, $parameter := dict "ca.crt" "ca" "tls.crt" "cert" "tls.key" "key" -}}
{{- if hasKey $files $file }}{{ $found = append $found (dict "parameter" $parameter "name" $certificates "key" (get $files $file)) }}{{ end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* Name of the TriggerAuthentication or ClusterTriggerAuthentication; empty if Redis needs none. */}}
{{- define "spottmee-worker.redis.authentication" -}}
{{- $authentication := .Values.keda.authentication -}}
{{- if $authentication.existing -}}
{{- $authentication.existing -}}
{{- else if include "spottmee-worker.redis.secrets" . | fromYamlArray -}}
{{- $cluster := eq $authentication.kind "ClusterTriggerAuthentication" -}}
{{- printf "%s%s" ($cluster | ternary (printf "%s-" .Release.Namespace) "") (include "spottmee-worker.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* One trigger. Takes root, key (in Redis), length, and activation. KEDA counts the elements of lists and of sorted sets. */}}
{{- define "spottmee-worker.redis.trigger" -}}
{{- $redis := .root.Values.redis -}}
type: {{ eq $redis.mode "standalone" | ternary "redis" (printf "redis-%s" $redis.mode) }}
metadata:
  {{ eq $redis.mode "standalone" | ternary "address" "addresses" }}: {{ include "spottmee-worker.redis.addresses" .root | quote }}
  {{- if eq $redis.mode "sentinel" }}
  sentinelMaster: {{ $redis.sentinel.master | quote }}
  {{- with $redis.sentinel.username }}
  sentinelUsernameFromEnv: REDIS_SENTINEL_USERNAME
  {{- end }}
  {{- end }}
  {{- if ne $redis.mode "cluster" }}
  databaseIndex: {{ int $redis.database | quote }}
  {{- end }}
  {{- with $redis.username }}
  usernameFromEnv: REDIS_USERNAME
  {{- end }}
  {{- if $redis.tls.enabled }}
  enableTLS: "true"
  unsafeSsl: {{ $redis.tls.skipVerify | quote }}
  {{- end }}
  listName: {{ .key | quote }}
  listLength: {{ int .length | quote }}
  activationListLength: {{ .activation | default 0 | int | quote }}
{{- with include "spottmee-worker.redis.authentication" .root }}
authenticationRef:
  kind: {{ $.root.Values.keda.authentication.kind }}
  name: {{ . | quote }}
{{- end }}
{{- end -}}
