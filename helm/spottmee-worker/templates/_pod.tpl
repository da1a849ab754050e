{{/* The pods: what all of them have in common, and what a queue adds. */}}

{{/* Metadata of a pod. Takes root, component, queue (the values of a queue, or of `plainQueue`), and annotations. */}}
{{- define "spottmee-worker.podMetadata" -}}
{{- $values := .root.Values -}}
labels:
  {{- include "spottmee-worker.merged" (list (include "spottmee-worker.ownLabels" . | fromYaml) .queue.podLabels $values.podLabels $values.commonLabels) | nindent 2 }}
{{- with include "spottmee-worker.merged" (list .annotations .queue.podAnnotations $values.podAnnotations $values.commonAnnotations) }}
annotations:
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
The values of a pod that serves no queue, in the form of a queue's values: without a GPU, and with the common placement
only. Takes queue (the queue that the other values come from) and resources.
*/}}
{{- define "spottmee-worker.plainQueue" -}}
{{- $plain := dict "gpu" (dict "count" 0) "idleSeconds" 0 "failureDelaySeconds" 0 "settings" dict "podLabels" dict "podAnnotations" dict "resources" .resources -}}
{{- toYaml (merge $plain (pick .queue "maxJobs" "maxSeconds" "shutdownSeconds" "terminationGracePeriodSeconds" "activeDeadlineSeconds" "ttlSecondsAfterFinished")) -}}
{{- end -}}

{{/* Fields of every pod: Pod Security "restricted", no service links. Takes the same as runPod. */}}
{{- define "spottmee-worker.podSecurity" -}}
enableServiceLinks: false
restartPolicy: {{ empty .service | ternary "Never" "Always" }}
{{- if not .root.Values.hostUsers }}
hostUsers: false
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with include "spottmee-worker.pullSecrets" .root | fromYamlArray }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The two database URLs, and the passwords if the chart writes the URLs. Takes root and copy, like secretName. */}}
{{- define "spottmee-worker.databaseEnv" -}}
{{- $prefixes := dict "database" "DATABASE" "embeddingsDatabase" "EMBEDDINGS_DATABASE" -}}
{{- range $name, $prefix := $prefixes }}
{{- $database := get $.root.Values $name }}
{{- $secret := include "spottmee-worker.secretName" (dict "root" $.root "inline" $database.url "existing" $database.existingSecret "copy" $.copy) }}
- name: {{ $prefix }}_URL
{{- if $database.host }}
  value: {{ include "spottmee-worker.databaseUrl" $database | quote }}
- name: {{ $prefix }}_PASSWORD
{{- end }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret | quote }}
      key: {{ empty $database.host | ternary (empty $database.url | ternary $database.urlKey (printf "%s_URL" $prefix)) $database.passwordKey | quote }}
      {{- if and (eq $name "embeddingsDatabase") (not (or $database.url $database.existingSecret $database.host)) }}
      optional: true
      {{- end }}
{{- end }}
{{- end -}}

{{/* A URL from its parts, without the password, which is a separate setting. Takes the values of a database. */}}
{{- define "spottmee-worker.databaseUrl" -}}
{{- $query := list -}}
{{- range $name, $value := .parameters }}{{ $query = append $query (printf "%s=%s" $name ($value | toString | urlquery)) }}{{ end -}}
{{- $path := .name | urlquery | replace "+" "%20" -}}
{{- printf "postgresql://%s@%s:%d/%s" (.username | urlquery | replace "+" "%20") .host (int .port) $path -}}
{{- if $query }}?{{ join "&" $query }}{{ end -}}
{{- end -}}

{{/* Volumes of the certificate authorities in the values: a list of name, and configMap or secret. */}}
{{- define "spottmee-worker.authorities" -}}
{{- $found := list -}}
{{- range $name, $authority := .Values.authorities -}}
{{- $items := list (dict "key" $authority.caKey "path" "ca.crt") -}}
{{- $volume := dict "name" (printf "ca-%s" $name) -}}
{{- with $authority.existingConfigMap }}{{ $_ := set $volume "configMap" (dict "name" . "items" $items) }}{{ end -}}
{{- with $authority.existingSecret }}{{ $_ := set $volume "secret" (dict "secretName" . "items" $items) }}{{ end -}}
{{- if gt (len $volume) 1 }}{{ $found = append $found $volume }}{{ end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* Paths of the certificate authorities, for libpq and for the worker. Takes the root. */}}
{{- define "spottmee-worker.authorityEnv" -}}
{{- $authorities := .Values.authorities -}}
{{- range include "spottmee-worker.authorities" . | fromYamlArray }}
{{- if eq .name "ca-postgresql" }}
- name: PGSSLROOTCERT
  value: /etc/ca-postgresql/ca.crt
- name: PGSSLMODE
  value: {{ $authorities.postgresql.mode }}
{{- else }}
- name: RUNNER_IMAGE_CA
  value: /etc/{{ .name }}/ca.crt
{{- end }}
{{- end }}
{{- end -}}

{{/* The pod's identity, for logs and leases: a replacement pod of the same Job takes over the leases. Takes job. */}}
{{- define "spottmee-worker.placeEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- if .job }}
- name: JOB_NAME
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
- name: RUNNER_OWNER
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
{{- end }}
{{- end -}}

{{/* Redis's secrets, and the limits of a run. Non-secret Redis settings are in the ConfigMap. Takes the same as runPod. */}}
{{- define "spottmee-worker.runEnv" -}}
{{- range include "spottmee-worker.redis.secrets" .root | fromYamlArray }}
{{- if .variable }}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ .name | quote }}
      key: {{ .key | quote }}
{{- end }}
{{- end }}
- name: RUNNER_QUEUES
  value: {{ .queues | quote }}
- name: RUNNER_MAX_JOBS
  value: {{ int .queue.maxJobs | quote }}
- name: RUNNER_MAX_SECONDS
  value: {{ include "spottmee-worker.setting" .queue.maxSeconds | quote }}
- name: RUNNER_IDLE_SECONDS
  value: {{ include "spottmee-worker.setting" .queue.idleSeconds | quote }}
- name: RUNNER_FAILURE_DELAY_SECONDS
  value: {{ include "spottmee-worker.setting" .queue.failureDelaySeconds | quote }}
- name: RUNNER_SHUTDOWN_SECONDS
  value: {{ include "spottmee-worker.setting" .queue.shutdownSeconds | quote }}
- name: RUNNER_TERMINATION_LOG
  value: /dev/termination-log
{{- end -}}

{{/*
Settings as variables: those of this pod and of its queue, and with a GPU the provider, so that a run does not fall back
to the CPU; both variables of a GPU may come from extraEnv instead. A migration runs before the ConfigMap exists, so it
gets the common settings here too. Takes the same as runPod.
*/}}
{{- define "spottmee-worker.settingsEnv" -}}
{{- $common := .root.Values.settings -}}
{{- $extra := dict -}}
{{- range .root.Values.extraEnv }}{{ $_ := set $extra .name true }}{{ end -}}
{{- $settings := merge (dict) (.settings | default dict) .queue.settings -}}
{{- if and (int .queue.gpu.count) (not (hasKey $common "RUNNER_PROVIDERS")) (not (hasKey $extra "RUNNER_PROVIDERS")) }}{{ $settings = merge $settings (dict "RUNNER_PROVIDERS" "cuda") }}{{ end -}}
{{- if .migration }}{{ $settings = merge $settings $common }}{{ end -}}
{{- if and (int .queue.gpu.count) (not (hasKey $extra "LD_LIBRARY_PATH")) }}
# GKE mounts the driver here. The worker finds it on its own; the driver finds its other libraries by this variable.
- name: LD_LIBRARY_PATH
  value: /usr/local/nvidia/lib64:/usr/local/nvidia/lib
{{- end }}
{{- range $name, $value := $settings }}
- name: {{ $name }}
  value: {{ include "spottmee-worker.setting" $value | quote }}
{{- end }}
{{- end -}}

{{/* Placement of a pod. Takes root and queue. */}}
{{- define "spottmee-worker.placement" -}}
{{- $values := .root.Values -}}
{{- $architectures := get $values.image.architectures (include "spottmee-worker.flavour" .) -}}
{{- $only := len $architectures | eq 1 | ternary (dict "kubernetes.io/arch" (first $architectures)) dict -}}
{{- with include "spottmee-worker.merged" (list .queue.nodeSelector $values.nodeSelector $only) }}
nodeSelector:
  {{- . | nindent 2 }}
{{- end }}
{{- $tolerations := concat (.queue.tolerations | default list) $values.tolerations }}
{{- if hasKey .queue "unreachableSeconds" }}
{{- range list "not-ready" "unreachable" }}
{{- $tolerations = append $tolerations (dict "key" (printf "node.kubernetes.io/%s" .) "operator" "Exists" "effect" "NoExecute" "tolerationSeconds" (int $.queue.unreachableSeconds)) }}
{{- end }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .queue.affinity | default $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .queue.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .queue.priorityClassName | default $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with include "spottmee-worker.runtimeClass" . }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The RuntimeClass of a pod: with GPUs only gpu.runtimeClassName, because a sandbox cannot use them. Takes root and queue. */}}
{{- define "spottmee-worker.runtimeClass" -}}
{{- if int .queue.gpu.count -}}
{{- .queue.gpu.runtimeClassName -}}
{{- else -}}
{{- .queue.runtimeClassName | default .root.Values.runtimeClassName -}}
{{- end -}}
{{- end -}}

{{/* The resources of a queue, with its GPUs among the limits. */}}
{{- define "spottmee-worker.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if int .gpu.count -}}
{{- $limits := $resources.limits | default dict -}}
{{- $_ := set $resources "limits" (set $limits .gpu.resource (int .gpu.count | toString)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/*
The pod of a command. Takes root, component (its label), queue (the values of a queue, or of `plainQueue`), args (of
spottmee-worker), and optionally queues (RUNNER_QUEUES), job (whether a Job owns it), settings (variables that take
precedence over other settings), account (a ServiceAccount of its own), token (whether its token is mounted), migration
(needs only the databases, and no ConfigMap), copy (like secretName), service (additional fields of a long-running
container), and redisOnly (needs no database).
*/}}
{{- define "spottmee-worker.runPod" -}}
{{- $root := .root -}}
{{- $queue := .queue -}}
serviceAccountName: {{ .account | default (include "spottmee-worker.serviceAccountName" $root) | quote }}
automountServiceAccountToken: {{ .token | default false }}
{{ include "spottmee-worker.podSecurity" . }}
terminationGracePeriodSeconds: {{ int $queue.terminationGracePeriodSeconds }}
{{- with include "spottmee-worker.placement" . | trim }}
{{ . }}
{{- end }}
{{- with $root.Values.initContainers }}
initContainers:
  {{- range . }}
  - {{ include "spottmee-worker.merged" (list (empty .securityContext | ternary (omit . "securityContext") .) (dict "securityContext" $root.Values.containerSecurityContext)) | indent 4 | trim }}
  {{- end }}
{{- end }}
containers:
  - name: runner
    image: {{ include "spottmee-worker.image" . | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    securityContext:
      {{- toYaml $root.Values.containerSecurityContext | nindent 6 }}
    terminationMessagePolicy: FallbackToLogsOnError
    args:
      {{- toYaml .args | nindent 6 }}
    {{- with .service }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if not .migration }}
    envFrom:
      - configMapRef:
          name: {{ include "spottmee-worker.fullname" $root | quote }}
    {{- end }}
    env:
      {{- if not .redisOnly }}
      {{- include "spottmee-worker.databaseEnv" (dict "root" $root "copy" .copy) | nindent 6 }}
      {{- end }}
      {{- include "spottmee-worker.authorityEnv" $root | nindent 6 }}
      {{- if not .migration }}
      {{- include "spottmee-worker.runEnv" . | nindent 6 }}
      {{- end }}
      {{- include "spottmee-worker.placeEnv" . | nindent 6 }}
      {{- include "spottmee-worker.settingsEnv" . | nindent 6 }}
      {{- with $root.Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    resources:
      {{- include "spottmee-worker.resources" $queue | nindent 6 }}
    volumeMounts:
      {{- include "spottmee-worker.mounts" . | nindent 6 }}
volumes:
  {{- include "spottmee-worker.volumes" . | nindent 2 }}
{{- end -}}

{{- define "spottmee-worker.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- range include "spottmee-worker.authorities" .root | fromYamlArray }}
- name: {{ .name }}
  mountPath: /etc/{{ .name }}
  readOnly: true
{{- end }}
{{- if and (not .migration) (include "spottmee-worker.redis.certificates" .root | fromYaml) }}
- name: redis-tls
  mountPath: /etc/redis-tls
  readOnly: true
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "spottmee-worker.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- with include "spottmee-worker.authorities" .root | fromYamlArray }}
{{ toYaml . }}
{{- end }}
{{- $certificates := include "spottmee-worker.redis.certificates" .root | fromYaml }}
{{- if and (not .migration) $certificates }}
- name: redis-tls
  secret:
    secretName: {{ include "spottmee-worker.redis.certificateSecret" .root | quote }}
    items:
      {{- range $file, $key := $certificates }}
      - key: {{ $key | quote }}
        path: {{ $file }}
      {{- end }}
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The Job template of a CronJob. Takes the same as runPod, and backoffLimit and activeDeadlineSeconds. */}}
{{- define "spottmee-worker.jobTemplate" -}}
metadata:
  {{- omit (include "spottmee-worker.metadata" . | fromYaml) "name" | toYaml | nindent 2 }}
spec:
  backoffLimit: {{ int .backoffLimit }}
  activeDeadlineSeconds: {{ int .activeDeadlineSeconds }}
  ttlSecondsAfterFinished: {{ int .queue.ttlSecondsAfterFinished }}
  template:
    metadata:
      {{- include "spottmee-worker.podMetadata" . | nindent 6 }}
    spec:
      {{- include "spottmee-worker.runPod" . | nindent 6 }}
{{- end -}}

{{/*
How a Job reacts to a failed pod. The exit codes are the worker's (docs/reference/exit-codes.md). Takes migration.
*/}}
{{- define "spottmee-worker.podFailurePolicy" -}}
rules:
  # A drained node or a preemption: a migration tries again; for a run, KEDA has already started another Job.
  - action: {{ .migration | default false | ternary "Ignore" "FailJob" }}
    onPodConditions:
      - type: DisruptionTarget
        status: "True"
  # The settings (2), schema (3) or model (4) are wrong, or no photo of the jobs is visible in the database (7): another
  # pod would fail in the same way.
  - action: FailJob
    onExitCodes:
      containerName: runner
      operator: In
      values: [2, 3, 4, 7]
{{- end -}}
