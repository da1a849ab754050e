{{/*
Rules that a schema cannot express, or not with a helpful message, such as rules between values. All errors are reported
at once, each with a fix: a rule prints one line per error, and the lines are collected here. No message contains a
secret.
*/}}
{{- define "spottmee-worker.validate" -}}
{{- $text := "" -}}
{{- range list "names" "image" "redis" "redisHosts" "redisSecrets" "tls" "databases" "authorities" "pods" "queues" "gpu" "reprocess" "metrics" "priorityClasses" "environment" "networks" "keda" "cluster" -}}
{{- $text = printf "%s\n%s" $text (include (printf "spottmee-worker.validate.%s" .) $) -}}
{{- end -}}
{{- $faults := list -}}
{{- range splitList "\n" $text -}}
{{- if trim . }}{{ $faults = append $faults (trim .) }}{{ end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n\nthese values must be changed:\n  - %s\n" (join "\n  - " $faults)) -}}
{{- end -}}
{{- end -}}

{{- define "spottmee-worker.validate.names" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if and $name (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $name)) }}
fullnameOverride is {{ $name | quote }}: a name has lower-case letters, digits and -, and begins and ends with a letter or digit
{{- else if and (not $name) (ne .Chart.Name "spottmee-worker") (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .Chart.Name)) }}
the alias {{ .Chart.Name | quote }} is part of every name, which has lower-case letters, digits and -: choose another alias, or set fullnameOverride
{{- else if and .Values.metrics.enabled (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "spottmee-worker.fullname" .))) }}
metrics.enabled creates a Service, whose name cannot begin with {{ include "spottmee-worker.fullname" . | quote }}: set fullnameOverride to a name of lower-case letters, digits and - that begins with a letter
{{- end }}
{{- if not .Values.enabled }}
enabled is false, which only a parent chart can act on: give its dependency `condition: {{ .Chart.Name }}.enabled`
{{- end }}
{{- $places := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels -}}
{{- range $queue, $values := .Values.queues }}{{ $_ := set $places (printf "queues.%s.podLabels" $queue) $values.podLabels }}{{ end -}}
{{- range $place, $labels := $places }}
{{- range $key, $_ := $labels }}
{{- if hasPrefix "app.kubernetes.io/" $key }}
{{ $place }} has {{ $key }}, by which the chart finds its objects: choose another key
{{- end }}
{{- end }}
{{- end }}
{{- if and (not .Values.serviceAccount.create) .Values.serviceAccount.annotations }}
serviceAccount.annotations are for the account that the chart creates, and serviceAccount.create is false: annotate the existing account, or set create to true
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.image" -}}
{{- if not .Values.image.repository }}
image.repository is empty: name the image, without its tag
{{- end }}
{{- $images := dict "image" .Values.image -}}
{{- range $name, $queue := .Values.queues }}{{ $_ := set $images (printf "queues.%s.image" $name) $queue.image }}{{ end -}}
{{- range $at, $image := $images }}
{{- if regexMatch "(:[^/]*|@.*)$" $image.repository }}
{{ $at }}.repository is {{ $image.repository | quote }}: put what follows the name into {{ $at }}.tag or {{ $at }}.digest
{{- end }}
{{- if and $image.digest (not (regexMatch "^sha256:[0-9a-f]{64}$" $image.digest)) }}
{{ $at }}.digest is {{ $image.digest | quote }}: it is sha256: with 64 hexadecimal digits behind it
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.redis" -}}
{{- $redis := .Values.redis -}}
{{- if eq $redis.mode "standalone" }}
{{- if $redis.nodes }}
redis.nodes are for the modes sentinel and cluster, and redis.mode is standalone: set redis.mode, or redis.host and redis.port instead of nodes
{{- end }}
{{- if not $redis.host }}
redis.host is empty: name the host of Redis, such as redis.default.svc
{{- else if regexMatch "[/@:,[:space:]]" $redis.host }}
redis.host is not just a host name (it has one of / @ : ,): set port, user, password and database as separate values
{{- end }}
{{- else }}
{{- if not $redis.nodes }}
redis.nodes is empty, and redis.mode is {{ $redis.mode }}: list the {{ eq $redis.mode "sentinel" | ternary "sentinels" "nodes of the cluster" }} as host:port
{{- end }}
{{- range $redis.nodes }}
{{- if not (regexMatch "^[^/@:,[:space:]]+:[0-9]{1,5}$" (toString .)) }}
redis.nodes has an entry that is not host:port (such as redis-0.redis:26379): user and password are values of their own
{{- else if or (regexMatch ":0" .) (gt (splitList ":" . | last | atoi) 65535) }}
redis.nodes has an entry whose port is not from 1 to 65535: write host:port, such as redis-0.redis:26379
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $redis.mode "cluster") (int $redis.database) }}
redis.database is {{ int $redis.database }}, and a cluster has only database 0: set it to 0
{{- end }}
{{- if and (eq $redis.mode "sentinel") (not $redis.sentinel.master) }}
redis.sentinel.master is empty: give the name under which the sentinels know the master (sentinel masters lists it)
{{- end }}
{{- end -}}

{{/*
Host names that only one of Redis's two clients could resolve: the pods, in the release's namespace, or KEDA's operator,
in its own. An invalid host name is rejected above and not repeated here, because it may contain a password.
*/}}
{{- define "spottmee-worker.validate.redisHosts" -}}
{{- $value := eq .Values.redis.mode "standalone" | ternary "redis.host" "redis.nodes" -}}
{{- range include "spottmee-worker.redis.hosts" . | fromYamlArray -}}
{{- $host := . | toString | lower -}}
{{- if regexMatch "^[a-z0-9_.-]+$" $host -}}
{{- $at := printf "%s has %q" $value $host -}}
{{- $labels := splitList "." $host -}}
{{- if or (hasPrefix "." $host) (contains ".." $host) (regexMatch "^[^.]+\\.$" $host) }}
{{ $at }}, which is not a host name: write NAME, NAME.NAMESPACE.svc or a full domain name
{{- else if and $.Values.checkCluster (regexMatch "^(localhost|localhost\\.localdomain|.+\\.localhost|127\\.[0-9.]+|0\\.0\\.0\\.0)\\.?$" $host) }}
{{ $at }}, which is each pod itself, and for KEDA its operator: name the Service of Redis (checkCluster: false skips this check)
{{- else if regexMatch "^[^.]+\\.svc(\\.|\\.cluster\\.local\\.?)?$" $host }}
{{ $at }}, which lacks the namespace: write {{ first $labels }}.{{ $.Release.Namespace }}.svc, or another namespace
{{- else if regexMatch "^[a-z0-9-]+-[0-9]+\\.[a-z0-9-]+$" $host }}
{{ $at }}. As a pod of a headless Service it resolves in its own namespace only, and KEDA's operator runs in another: write {{ $host }}.{{ $.Release.Namespace }}.svc; or {{ $host }}.svc for the Service {{ first $labels }} of the namespace {{ last $labels }}, or {{ $host }}. with a final dot for a full domain name
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "spottmee-worker.validate.redisSecrets" -}}
{{- $redis := .Values.redis -}}
{{- $auth := $redis.auth -}}
{{- if not $auth.enabled }}
{{- if or $auth.password $auth.existingSecret $auth.usernameKey $redis.username }}
redis.auth.enabled is false, and a user, a password or a Secret is given: set redis.auth.enabled to true, or leave them empty
{{- end }}
{{- else }}
{{- if and $auth.password $auth.existingSecret }}
redis.auth.password and redis.auth.existingSecret are both set: keep one of them
{{- end }}
{{- if and $auth.password $auth.usernameKey }}
redis.auth.usernameKey is a key of an existing Secret, and redis.auth.password keeps the password in the values: use redis.username, or an existing Secret for both
{{- end }}
{{- if and $redis.username $auth.usernameKey }}
redis.username and redis.auth.usernameKey are both set: keep one of them
{{- end }}
{{- if not (or $auth.password $auth.passwordKey) }}
redis.auth.passwordKey is empty: name the Secret's key that holds the password
{{- end }}
{{- end }}
{{- $sentinel := $redis.sentinel.auth -}}
{{- if ne $redis.mode "sentinel" }}
{{- if or $sentinel.enabled $redis.sentinel.username }}
redis.sentinel has a user or a password, and redis.mode is {{ $redis.mode }}: set redis.mode to sentinel, or remove redis.sentinel
{{- end }}
{{- else if not $sentinel.enabled }}
{{- if or $sentinel.password $sentinel.existingSecret $redis.sentinel.username }}
redis.sentinel.auth.enabled is false, and a user, a password or a Secret is given: set redis.sentinel.auth.enabled to true, or leave them empty
{{- end }}
{{- else if and $sentinel.password $sentinel.existingSecret }}
redis.sentinel.auth.password and redis.sentinel.auth.existingSecret are both set: keep one of them
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.tls" -}}
{{- $tls := .Values.redis.tls -}}
{{- $inline := or $tls.ca $tls.certificate $tls.privateKey -}}
{{- $keys := or $tls.caKey $tls.certificateKey $tls.privateKeyKey -}}
{{- if not $tls.enabled }}
{{- if or $inline $keys $tls.existingSecret $tls.skipVerify }}
redis.tls.enabled is false, and other values of redis.tls are set: set redis.tls.enabled to true, or leave them empty
{{- end }}
{{- else }}
{{- if and $inline (or $keys $tls.existingSecret) }}
redis.tls has certificates in the values and an existing Secret: keep one of them
{{- end }}
{{- if and $tls.existingSecret (not $keys) }}
redis.tls.existingSecret is set, and none of its keys is named: set redis.tls.caKey (ca.crt), and certificateKey and privateKeyKey where Redis wants to see a certificate
{{- end }}
{{- if ne (empty $tls.certificate) (empty $tls.privateKey) }}
redis.tls.certificate and redis.tls.privateKey belong together: set both or neither
{{- end }}
{{- if ne (empty $tls.certificateKey) (empty $tls.privateKeyKey) }}
redis.tls.certificateKey and redis.tls.privateKeyKey belong together: set both or neither
{{- end }}
{{- if and $tls.skipVerify (or $tls.ca $tls.caKey) }}
redis.tls.skipVerify accepts any certificate, so the authority's would never be used: leave one of them out
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.databases" -}}
{{- range $name := list "database" "embeddingsDatabase" }}
{{- $database := get $.Values $name }}
{{- if and $database.url $database.existingSecret }}
{{ $name }}.url and {{ $name }}.existingSecret are both set: keep one of them
{{- end }}
{{- if and $database.url (not (regexMatch "^postgres(ql)?://." $database.url)) }}
{{ $name }}.url must begin with postgresql://
{{- end }}
{{- if $database.host }}
{{- if $database.url }}
{{ $name }}.url and {{ $name }}.host are both set: keep one of them
{{- end }}
{{- if regexMatch "[/@?,[:space:]]" $database.host }}
{{ $name }}.host is not just a host name (it has one of / @ ? ,): set port, database and user as separate values
{{- else if and (contains ":" $database.host) (not (regexMatch "^\\[[0-9A-Fa-f:.]+\\]$" $database.host)) }}
{{ $name }}.host is not just a host name (it has a colon): set {{ $name }}.port, or put an IPv6 address into [ ]
{{- end }}
{{- if not (and $database.name $database.username $database.passwordKey) }}
{{ $name }}.host is set, and {{ $name }}.name, username or passwordKey is empty: the chart writes the URL from all of them; set them, or leave the host empty and keep the whole URL in the Secret
{{- end }}
{{- else }}
{{- if or $database.name $database.username $database.parameters }}
{{ $name }}.name, username and parameters belong to {{ $name }}.host, which is empty: set the host, or put them into the URL
{{- end }}
{{- if not (or $database.url $database.urlKey) }}
{{ $name }}.urlKey is empty: name the Secret's key that holds the URL
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.authorities" -}}
{{- range $name, $authority := .Values.authorities }}
{{- if and $authority.existingConfigMap $authority.existingSecret }}
authorities.{{ $name }}.existingConfigMap and existingSecret are both set: keep one of them
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.pods" -}}
{{- range .Values.extraVolumes }}
{{- if regexMatch "^(tmp|redis-tls|ca-postgresql|ca-images|debug-payload)$" .name }}
extraVolumes has {{ .name }}, which is a volume of the chart's own: choose another name
{{- end }}
{{- end }}
{{- range .Values.extraVolumeMounts }}
{{- if regexMatch "^/(tmp|etc/(redis-tls|ca-postgresql|ca-images))/?$" .mountPath }}
extraVolumeMounts has {{ .mountPath }}, where the chart mounts a volume of its own: choose another path
{{- end }}
{{- end }}
{{- range $place, $key := dict "extraVolumes" "name" "extraVolumeMounts" "mountPath" "initContainers" "name" }}
{{- $seen := dict }}
{{- range get $.Values $place }}
{{- if hasKey $seen (get . $key) }}
{{ $place }} has the {{ $key }} {{ get . $key }} more than once: keep one of them
{{- end }}
{{- $_ := set $seen (get . $key) true }}
{{- end }}
{{- end }}
{{- range .Values.initContainers }}
{{- if eq .name "runner" }}
initContainers has runner, which is the worker's own container: choose another name
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.queues" -}}
{{- $enabled := false -}}
{{- range $name, $queue := .Values.queues }}
{{- if $queue.enabled }}{{ $enabled = true }}{{ end -}}
{{- $at := printf "queues.%s" $name -}}
{{- $drain := float64 $queue.shutdownSeconds -}}
{{- if lt (int $queue.jobsPerPod) 1 }}
{{ $at }}.jobsPerPod is {{ int $queue.jobsPerPod }}: a pod takes at least 1 job; to stop the list set {{ $at }}.enabled to false
{{- end }}
{{- if lt (int $queue.maxJobs) (int $queue.jobsPerPod) }}
{{ $at }}.maxJobs is {{ int $queue.maxJobs }}, below jobsPerPod ({{ int $queue.jobsPerPod }}): pods would leave jobs that KEDA expects them to process; raise it, or lower jobsPerPod
{{- end }}
{{- if lt (int $queue.pollingInterval) 1 }}
{{ $at }}.pollingInterval is {{ int $queue.pollingInterval }}: KEDA polls at most once a second, set it to 1 or more
{{- end }}
{{- if lt (int $queue.maxReplicas) 1 }}
{{ $at }}.maxReplicas is {{ int $queue.maxReplicas }}: set it to 1 or more; to stop the list set {{ $at }}.enabled to false, or paused to true for a while
{{- else if gt (int $queue.minReplicas) (int $queue.maxReplicas) }}
{{ $at }}.minReplicas is {{ int $queue.minReplicas }}, above maxReplicas ({{ int $queue.maxReplicas }}): lower it, or raise maxReplicas
{{- end }}
{{- if and (int $queue.minReplicas) (not (float64 $queue.idleSeconds)) }}
{{ $at }}.minReplicas is {{ int $queue.minReplicas }}, and {{ $at }}.idleSeconds is 0: pods without work would exit at once and be replaced forever; set {{ $at }}.idleSeconds (to maxSeconds, say), or minReplicas to 0
{{- end }}
{{- if or (lt (float64 $queue.maxSeconds) 1.0) (gt (float64 $queue.maxSeconds) 86400.0) }}
{{ $at }}.maxSeconds must be from 1 to 86400
{{- end }}
{{- if or (lt $drain 0.0) (gt $drain 3600.0) }}
{{ $at }}.shutdownSeconds must be from 0 to 3600
{{- end }}
{{- if lt (float64 $queue.terminationGracePeriodSeconds) (addf $drain 5) }}
{{ $at }}.terminationGracePeriodSeconds is {{ int $queue.terminationGracePeriodSeconds }}, below shutdownSeconds + 5 ({{ addf $drain 5 }}): pods would be killed before they have released their jobs; raise it, or lower shutdownSeconds
{{- end }}
{{- if le (float64 $queue.activeDeadlineSeconds) (addf $drain $queue.maxSeconds) }}
{{ $at }}.activeDeadlineSeconds is {{ int $queue.activeDeadlineSeconds }}, not above maxSeconds + shutdownSeconds ({{ addf $drain $queue.maxSeconds }}): Kubernetes would end Jobs in the middle of their work; raise it, or lower maxSeconds
{{- end }}
{{- end }}
{{- if not $enabled }}
queues: none of them is enabled, so nothing would ever run: enable process, compare or both
{{- end }}
{{- if not (get .Values.queues .Values.debug.like) }}
debug.like is {{ .Values.debug.like | quote }}: it is process or compare
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.gpu" -}}
{{- $image := .Values.image -}}
{{- range $name, $queue := .Values.queues }}
{{- $at := printf "queues.%s" $name -}}
{{- if and (int $queue.gpu.count) (or $image.tag $image.digest) (not (or $queue.image.tag $queue.image.digest)) }}
{{ $at }}.gpu.count is {{ int $queue.gpu.count }}, and image has a tag or a digest, which is that of the image without CUDA: set {{ $at }}.image.tag or digest to the one with it (FLAVOUR=gpu)
{{- end }}
{{- if and $queue.gpu.runtimeClassName (not (int $queue.gpu.count)) }}
{{ $at }}.gpu.runtimeClassName is set, and {{ $at }}.gpu.count is 0: set the count, or leave the class empty
{{- end }}
{{- range $kind, $amounts := $queue.resources }}
{{- if and (kindIs "map" $amounts) (hasKey $amounts $queue.gpu.resource) }}
{{ $at }}.resources.{{ $kind }} has {{ $queue.gpu.resource }}: set {{ $at }}.gpu.count instead
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.reprocess" -}}
{{- $given := get .Values.settings "RUNNER_PHOTO_URL" -}}
{{- range .Values.extraEnv }}{{ if eq .name "RUNNER_PHOTO_URL" }}{{ $given = true }}{{ end }}{{ end -}}
{{- if and .Values.reprocess.enabled (not $given) }}
reprocess.enabled is true, and nothing says where the API stores photos: set settings.RUNNER_PHOTO_URL, to https://storage.googleapis.com/BUCKET/albums/{album_id}/{normalized_name} for example
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.metrics" -}}
{{- $metrics := .Values.metrics -}}
{{- if and $metrics.monitor.enabled (not $metrics.enabled) }}
metrics.monitor.enabled is true, and metrics.enabled is false, so there is nothing to scrape: set metrics.enabled to true, or metrics.monitor.enabled to false
{{- end }}
{{- $limits := dict -}}
{{- range $name := list "interval" "scrapeTimeout" -}}
{{- $text := get $metrics.monitor $name -}}
{{- $unit := get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) (regexFind "[a-z]+$" $text) -}}
{{- $_ := set $limits $name (mul (regexFind "^[0-9]+" $text | atoi) $unit) -}}
{{- end -}}
{{- if and $metrics.monitor.enabled (gt $limits.scrapeTimeout $limits.interval) }}
metrics.monitor.scrapeTimeout is {{ $metrics.monitor.scrapeTimeout }}, above interval ({{ $metrics.monitor.interval }}), so the Prometheus operator would ignore the monitor: lower it, or raise interval
{{- end }}
{{- if and $metrics.networkPolicy.from (not (and $metrics.enabled .Values.networkPolicy.enabled)) }}
metrics.networkPolicy.from is set, and metrics.enabled or networkPolicy.enabled is false: set both to true, or leave it empty
{{- end }}
{{- end -}}

{{/* The cluster autoscaler ignores pods below its --expendable-pods-priority-cutoff, -10 by default. */}}
{{- define "spottmee-worker.validate.priorityClasses" -}}
{{- $names := dict -}}
{{- range .Values.priorityClasses }}
{{- if lt (int .value) -10 }}
priorityClasses has {{ .name }} with the value {{ int .value }}: the cluster autoscaler adds no node for pods below -10, so their Jobs would wait forever; raise it
{{- end }}
{{- if hasKey $names .name }}
priorityClasses has {{ .name }} twice: keep one of them
{{- end }}
{{- $_ := set $names .name true }}
{{- end }}
{{- end -}}

{{/* The variables that the chart sets, with the value that each comes from. */}}
{{- define "spottmee-worker.ownEnvironment" -}}
REDIS_URL: redis
REDIS_USERNAME: redis.username
REDIS_PASSWORD: redis.auth
REDIS_SENTINEL_USERNAME: redis.sentinel.username
REDIS_SENTINEL_PASSWORD: redis.sentinel.auth
DATABASE_URL: database
DATABASE_PASSWORD: database.passwordKey
EMBEDDINGS_DATABASE_URL: embeddingsDatabase
EMBEDDINGS_DATABASE_PASSWORD: embeddingsDatabase.passwordKey
RUNNER_IMAGE_CA: authorities.images
{{- if or .Values.authorities.postgresql.existingConfigMap .Values.authorities.postgresql.existingSecret }}
PGSSLROOTCERT: authorities.postgresql
PGSSLMODE: authorities.postgresql.mode
{{- end }}
RUNNER_QUEUES: queues.*.enabled
RUNNER_MAX_JOBS: queues.*.maxJobs
RUNNER_MAX_SECONDS: queues.*.maxSeconds
RUNNER_IDLE_SECONDS: queues.*.idleSeconds
RUNNER_FAILURE_DELAY_SECONDS: queues.*.failureDelaySeconds
RUNNER_SHUTDOWN_SECONDS: queues.*.shutdownSeconds
RUNNER_JOB: nothing (it is for debug runs)
RUNNER_OWNER: nothing (it is the Job's name)
RUNNER_TERMINATION_LOG: nothing (it is /dev/termination-log)
POD_NAME: nothing
JOB_NAME: nothing
NODE_NAME: nothing
{{- end -}}

{{- define "spottmee-worker.validate.environment" -}}
{{- $own := include "spottmee-worker.ownEnvironment" . | fromYaml -}}
{{- $places := dict "settings" .Values.settings -}}
{{- range $name, $queue := .Values.queues }}{{ $_ := set $places (printf "queues.%s.settings" $name) $queue.settings }}{{ end -}}
{{- $seen := dict -}}
{{- range $variable := .Values.extraEnv }}
{{- if hasKey $own .name }}
extraEnv has {{ .name }}, which the chart sets: use {{ get $own .name }} instead
{{- else if hasKey $seen .name }}
extraEnv has {{ .name }} more than once: keep one of them
{{- else if and $.Values.debug.enabled (eq .name "RUNNER_LOG_LEVEL") }}
extraEnv has RUNNER_LOG_LEVEL, which debug.logLevel sets for debug runs: use settings.RUNNER_LOG_LEVEL instead
{{- end }}
{{- $_ := set $seen .name true }}
{{- range $place, $settings := $places }}
{{- if and (hasKey $settings $variable.name) (not (hasKey $own $variable.name)) }}
extraEnv and {{ $place }} both have {{ $variable.name }}: remove it from extraEnv, or from {{ $place }} if its value is in a Secret or ConfigMap
{{- end }}
{{- end }}
{{- end }}
{{- range $place, $settings := $places }}
{{- range $name, $value := $settings }}
{{- if hasKey $own $name }}
{{ $place }} has {{ $name }}, which the chart sets: use {{ get $own $name }} instead
{{- else if eq $name "RUNNER_FETCH_PROXY_URL" }}
{{ $place }} has RUNNER_FETCH_PROXY_URL, which may contain a password: set it in extraEnv, from a Secret (valueFrom.secretKeyRef)
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.networks" -}}
{{- $byte := "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])" -}}
{{- $ipv4 := printf "^(%s\\.){3}%s/([0-9]|[12][0-9]|3[0-2])$" $byte $byte -}}
{{- $ipv6 := "^([0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}|([0-9a-f]{1,4}(:[0-9a-f]{1,4})*)?::([0-9a-f]{1,4}(:[0-9a-f]{1,4})*)?)/([1-9]?[0-9]|1[01][0-9]|12[0-8])$" -}}
{{- range .Values.networkPolicy.privateNetworks }}
{{- $groups := regexFindAll "[0-9a-f]+" (splitList "/" . | first) -1 | len }}
{{- if not (or (regexMatch $ipv4 .) (and (regexMatch $ipv6 .) (le $groups (contains "::" . | ternary 7 8)))) }}
networkPolicy.privateNetworks has {{ . | quote }}, which is not a network: write ADDRESS/LENGTH, such as 10.0.0.0/8 or 2001:db8::/32
{{- else if regexMatch (contains ":" . | ternary "/[0-3]$" "/0$") . }}
networkPolicy.privateNetworks has {{ . | quote }}, which leaves no public address: write smaller networks, or set networkPolicy.imagePorts to [] to allow no image server
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.keda" -}}
{{- $authentication := .Values.keda.authentication -}}
{{- $redis := .Values.redis -}}
{{- $inline := or $redis.auth.password $redis.sentinel.auth.password $redis.tls.ca $redis.tls.certificate $redis.tls.privateKey -}}
{{- if and (eq $authentication.kind "ClusterTriggerAuthentication") (not $authentication.existing) $inline }}
keda.authentication.kind is ClusterTriggerAuthentication, whose Secrets KEDA reads in its own namespace, and Redis's password or certificates are in the values, which the chart keeps in the release's: use existing Secrets with copies in KEDA's namespace, or TriggerAuthentication
{{- end }}
{{- end -}}

{{/*
Not empty if helm is connected to a cluster. Lookups return nothing in `helm template`, `helm lint` and GitOps
controllers that only render. Every namespace has this ConfigMap, and helm's user may get ConfigMaps; the second lookup
is for a namespace that --create-namespace has yet to create.
*/}}
{{- define "spottmee-worker.hasCluster" -}}
{{- if or (lookup "v1" "ConfigMap" .Release.Namespace "kube-root-ca.crt") (lookup "v1" "Namespace" "" "default") }}true{{ end -}}
{{- end -}}

{{/*
If helm is connected to a cluster, check that the objects named in the values exist: a pod that waits for a missing
Secret reports it only in its events, and a Job whose PriorityClass or RuntimeClass is missing never gets a pod. Objects
are looked up by name.
*/}}
{{- define "spottmee-worker.validate.cluster" -}}
{{- if and .Values.checkCluster (include "spottmee-worker.hasCluster" .) -}}
{{- if not (.Capabilities.APIVersions.Has "keda.sh/v1alpha1/ScaledJob") }}
KEDA is not in this cluster (it knows no ScaledJob of keda.sh/v1alpha1): install it first (https://keda.sh/docs/latest/deploy/)
{{- end }}
{{ include "spottmee-worker.validate.cluster.secrets" . }}
{{ include "spottmee-worker.validate.cluster.classes" . }}
{{- end -}}
{{- end -}}

{{- define "spottmee-worker.validate.cluster.secrets" -}}
{{- $wanted := include "spottmee-worker.redis.secrets" . | fromYamlArray -}}
{{- range $name := list "database" "embeddingsDatabase" }}
{{- $database := get $.Values $name }}
{{- if or (eq $name "database") $database.existingSecret $database.host -}}
{{- $wanted = append $wanted (dict "name" (include "spottmee-worker.secretName" (dict "root" $ "inline" $database.url "existing" $database.existingSecret)) "key" (empty $database.host | ternary $database.urlKey $database.passwordKey)) -}}
{{- end }}
{{- end }}
{{- range .Values.authorities }}
{{- with .existingSecret }}{{ $wanted = append $wanted (dict "name" . "key" "") }}{{ end }}
{{- with .existingConfigMap }}{{ $wanted = append $wanted (dict "kind" "ConfigMap" "name" . "key" "") }}{{ end }}
{{- end }}
{{- range $wanted }}
{{- $kind := .kind | default "Secret" }}
{{- if ne .name (printf "%s-inline" (include "spottmee-worker.fullname" $)) }}
{{- $found := lookup "v1" $kind $.Release.Namespace .name }}
{{- if $found }}
{{- if and .key (not (hasKey ($found.data | default dict) .key)) }}
the {{ $kind }} {{ .name }} has no key {{ .key }}: add it, or name the key that it has in the values
{{- end }}
{{- else if ne $.Values.migration.mode "job" }}
the {{ $kind }} {{ .name }} is missing: kubectl --namespace {{ $.Release.Namespace }} create {{ eq $kind "Secret" | ternary "secret generic" "configmap" }} {{ .name }} {{ empty .key | ternary "--from-file=ca.crt=…" (printf "--from-literal=%s=…" .key) }} (if the release itself makes it: migration.mode: job; checkCluster: false skips this check)
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.validate.cluster.classes" -}}
{{- $created := dict -}}
{{- range .Values.priorityClasses }}{{ $_ := set $created .name true }}{{ end -}}
{{- $places := dict "" (dict "queue" (dict "gpu" (dict "count" 0))) -}}
{{- range $name, $queue := .Values.queues }}
{{- if $queue.enabled }}{{ $_ := set $places (printf "queues.%s." $name) (dict "queue" $queue) }}{{ end -}}
{{- end }}
{{- range $at, $place := $places }}
{{- $class := $place.queue.priorityClassName | default (empty $at | ternary $.Values.priorityClassName "") }}
{{- if and $class (not (hasKey $created $class)) (not (lookup "scheduling.k8s.io/v1" "PriorityClass" "" $class)) }}
{{ $at }}priorityClassName is {{ $class | quote }}, and there is no such PriorityClass in this cluster: create it, or add it to priorityClasses, which the chart creates
{{- end }}
{{- $class = include "spottmee-worker.runtimeClass" (dict "root" $ "queue" $place.queue) }}
{{- if and $class (not (lookup "node.k8s.io/v1" "RuntimeClass" "" $class)) }}
{{ $at }}{{ int $place.queue.gpu.count | empty | ternary "" "gpu." }}runtimeClassName is {{ $class | quote }}, and there is no such RuntimeClass in this cluster: create it (the GPU operator creates nvidia), or leave the value empty for the nodes' default runtime
{{- end }}
{{- end }}
{{- end -}}
