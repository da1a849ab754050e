{{/* The pods: what every one of them has in common, and what a list adds. */}}

{{- define "spottmee-worker.podMetadata" -}}
labels:
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "spottmee-worker.labels" . | nindent 2 }}
{{- with .root.Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Fields of every pod: Pod Security "restricted", no links to services. Takes the root. */}}
{{- define "spottmee-worker.podSecurity" -}}
enableServiceLinks: false
restartPolicy: Never
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Fields of every container. Takes the root. */}}
{{- define "spottmee-worker.container" -}}
name: runner
image: {{ include "spottmee-worker.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* The two database URLs. Takes root and copy, as secretName does. */}}
{{- define "spottmee-worker.databaseEnv" -}}
{{- $api := .root.Values.database -}}
{{- $embeddings := .root.Values.embeddingsDatabase -}}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "spottmee-worker.secretName" (dict "root" .root "inline" $api.url "existing" $api.existingSecret "copy" .copy) | quote }}
      key: {{ empty $api.url | ternary $api.urlKey "DATABASE_URL" | quote }}
- name: EMBEDDINGS_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "spottmee-worker.secretName" (dict "root" .root "inline" $embeddings.url "existing" $embeddings.existingSecret "copy" .copy) | quote }}
      key: {{ empty $embeddings.url | ternary $embeddings.urlKey "EMBEDDINGS_DATABASE_URL" | quote }}
      {{- if not (or $embeddings.url $embeddings.existingSecret) }}
      optional: true
      {{- end }}
{{- end -}}

{{/* Who this pod is: for the log, and for the leases (a pod that replaces another of its Job takes its leases over). */}}
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

{{/* Where a pod runs. Takes the values of a list. */}}
{{- define "spottmee-worker.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- if int .gpu.count }}
{{- with .gpu.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The resources of a list, its GPUs among the limits. */}}
{{- define "spottmee-worker.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if int .gpu.count -}}
{{- $limits := $resources.limits | default dict -}}
{{- $_ := set $resources "limits" (set $limits .gpu.resource (int .gpu.count | toString)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/*
The pod of a run. Takes root, component (its label), queues (RUNNER_QUEUES), list (the values it is made from), args
(of spottmee-worker), job (whether a Job owns it), settings (variables that come before all others), and account (a
ServiceAccount of its own, whose token is mounted).
*/}}
{{- define "spottmee-worker.runPod" -}}
{{- $root := .root -}}
{{- $queue := .queue -}}
serviceAccountName: {{ .account | default (include "spottmee-worker.serviceAccountName" $root) | quote }}
automountServiceAccountToken: {{ not (empty .account) }}
{{ include "spottmee-worker.podSecurity" $root }}
terminationGracePeriodSeconds: {{ int $queue.terminationGracePeriodSeconds }}
{{- with include "spottmee-worker.placement" $queue | trim }}
{{ . }}
{{- end }}
containers:
  - {{ include "spottmee-worker.container" $root | indent 4 | trim }}
    args:
      {{- toYaml .args | nindent 6 }}
    envFrom:
      - configMapRef:
          name: {{ include "spottmee-worker.fullname" $root | quote }}
    env:
      {{- include "spottmee-worker.databaseEnv" (dict "root" $root) | nindent 6 }}
      {{- range include "spottmee-worker.redis.secrets" $root | fromYamlArray }}
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
        value: {{ int $queue.jobsPerPod | quote }}
      - name: RUNNER_MAX_SECONDS
        value: {{ include "spottmee-worker.setting" $queue.maxSeconds | quote }}
      - name: RUNNER_SHUTDOWN_SECONDS
        value: {{ include "spottmee-worker.setting" $queue.shutdownSeconds | quote }}
      - name: RUNNER_TERMINATION_LOG
        value: /dev/termination-log
      {{- include "spottmee-worker.placeEnv" . | nindent 6 }}
      {{- range $name, $value := merge (dict) (.settings | default dict) $queue.settings }}
      - name: {{ $name }}
        value: {{ include "spottmee-worker.setting" $value | quote }}
      {{- end }}
      {{- with $root.Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    resources:
      {{- include "spottmee-worker.resources" $queue | nindent 6 }}
    volumeMounts:
      {{- include "spottmee-worker.mounts" $root | nindent 6 }}
volumes:
  {{- include "spottmee-worker.volumes" $root | nindent 2 }}
{{- end -}}

{{- define "spottmee-worker.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "spottmee-worker.redis.certificates" . | fromYaml }}
- name: redis-tls
  mountPath: /etc/redis-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "spottmee-worker.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- with include "spottmee-worker.redis.certificates" . | fromYaml }}
- name: redis-tls
  secret:
    secretName: {{ include "spottmee-worker.redis.certificateSecret" $ | quote }}
    items:
      {{- range $file, $key := . }}
      - key: {{ $key | quote }}
        path: {{ $file }}
      {{- end }}
{{- end }}
{{- end -}}

{{/* What a pod's end means to its Job. The exit codes are the worker's (docs/reference/exit-codes.md). */}}
{{- define "spottmee-worker.podFailurePolicy" -}}
rules:
  # A drained node, a preemption: nobody's fault, and no attempt.
  - action: Ignore
    onPodConditions:
      - type: DisruptionTarget
        status: "True"
  # Settings (2), schema (3) or model (4) are wrong, or the database shows no photo of the jobs (7): another pod would
  # end the same way.
  - action: FailJob
    onExitCodes:
      containerName: runner
      operator: In
      values: [2, 3, 4, 7]
{{- end -}}
