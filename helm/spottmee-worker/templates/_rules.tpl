{{/*
The alerts, each a map of alert, expr, for, severity and summary. An alert's section in the runbook has the same name.
KEDA's series have the namespace of their ScaledJob in `namespace`, or in `exported_namespace` if Prometheus does not
honour labels.
*/}}

{{/* Alerts on the series of KEDA and kube-state-metrics only. Takes the root. */}}
{{- define "spottmee-worker.rules.cluster" -}}
{{- $name := include "spottmee-worker.fullname" . -}}
{{- $queues := include "spottmee-worker.enabledQueues" . | fromYamlArray | join "|" -}}
{{- $namespace := .Release.Namespace -}}
{{- $rules := .Values.metrics.rules -}}
{{- $pods := printf "namespace=%q,pod=~\"%s-(%s)-.+\"" $namespace $name $queues -}}
{{- $jobs := printf "namespace=%q,job_name=~\"%s-(%s)-.+\"" $namespace $name $queues -}}
- alert: SpottmeeKedaCannotReadRedis
  expr: |-
    sum by (scaledJob) (
      increase(keda_scaled_job_errors_total{namespace="{{ $namespace }}",scaledJob=~"{{ $name }}-({{ $queues }})"}[5m])
      or increase(keda_scaled_job_errors_total{exported_namespace="{{ $namespace }}",scaledJob=~"{{ $name }}-({{ $queues }})"}[5m])
    ) > 0
  for: 1m
  severity: critical
  summary: |-
    KEDA cannot read Redis for {{`{{ $labels.scaledJob }}`}}, so it starts no Jobs.
- alert: SpottmeeKedaDown
  expr: |-
    kube_deployment_status_replicas_available{deployment="keda-operator"} == 0
  for: 1m
  severity: critical
  summary: |-
    No pod of KEDA's operator is available, so no Jobs are started.
- alert: SpottmeeNoJobStarts
  expr: |-
    {{- if .Values.metrics.enabled }}
    {{- $series := include "spottmee-worker.rules.series" . }}
    max by (queue) (spottmee_jobs_waiting{ {{- $series -}} }) + max by (queue) (spottmee_leases_due{ {{- $series -}} }) > 0
    {{- else }}
    max by (queue) (
      label_replace(keda_scaler_metrics_value{namespace="{{ $namespace }}",scaledObject=~"{{ $name }}-({{ $queues }})"}, "queue", "$1", "scaledObject", "{{ $name }}-(.+)")
      or label_replace(keda_scaler_metrics_value{exported_namespace="{{ $namespace }}",scaledObject=~"{{ $name }}-({{ $queues }})"}, "queue", "$1", "scaledObject", "{{ $name }}-(.+)")
    ) > 0
    {{- end }}
    unless on (queue)
      sum by (queue) (label_replace(kube_job_status_active{ {{- $jobs -}} }, "queue", "$1", "job_name", "{{ $name }}-({{ $queues }})-.+")) > 0
  for: {{ int $rules.podSeconds }}s
  severity: critical
  summary: |-
    Jobs are waiting in the queue {{`{{ $labels.queue }}`}}, but it has no active Kubernetes Job.
- alert: SpottmeePodPending
  expr: |-
    sum by (pod) (kube_pod_status_phase{ {{- $pods -}} ,phase="Pending"}) > 0
  for: {{ int $rules.podSeconds }}s
  severity: critical
  summary: |-
    The pod {{`{{ $labels.pod }}`}} is pending, and KEDA counts its Job as active.
- alert: SpottmeePodTerminating
  expr: |-
    time() - max by (pod) (kube_pod_deletion_timestamp{ {{- $pods -}} }) > {{ int $rules.podSeconds }}
  for: 1m
  severity: warning
  summary: |-
    The pod {{`{{ $labels.pod }}`}} does not terminate. Another Job does its work, but its own Job counts towards maxReplicas until it ends.
- alert: SpottmeeJobsFailing
  expr: |-
    count by (queue) (label_replace(
      kube_job_failed{ {{- $jobs -}} ,condition="true"} == 1
      and on (job_name) time() - kube_job_created{ {{- $jobs -}} } < 900,
      "queue", "$1", "job_name", "{{ $name }}-({{ $queues }})-.+"
    )) >= 2
  for: 0s
  severity: critical
  summary: |-
    {{`{{ $value }}`}} Jobs of the queue {{`{{ $labels.queue }}`}} have failed within 15 minutes.
{{- if .Values.sweep.enabled }}
- alert: SpottmeeSweepFailing
  expr: |-
    kube_cronjob_status_last_schedule_time{namespace="{{ $namespace }}",cronjob="{{ $name }}-sweep"}
    > on (cronjob) (
      kube_cronjob_status_last_successful_time{namespace="{{ $namespace }}",cronjob="{{ $name }}-sweep"}
      or on (cronjob) kube_cronjob_created{namespace="{{ $namespace }}",cronjob="{{ $name }}-sweep"}
    )
  for: 30m
  severity: warning
  summary: |-
    The sweep keeps failing, so embeddings of deleted photos are not removed.
{{- end }}
{{- end -}}

{{/* The labels that select the exporter's series. Takes the root. */}}
{{- define "spottmee-worker.rules.series" -}}
namespace="{{ .Release.Namespace }}",job="{{ include "spottmee-worker.fullname" . }}-metrics"
{{- end -}}

{{/* Alerts on the exporter's series. Takes the root. */}}
{{- define "spottmee-worker.rules.exporter" -}}
{{- $series := include "spottmee-worker.rules.series" . -}}
{{- $rules := .Values.metrics.rules -}}
- alert: SpottmeeExporterDown
  expr: |-
    absent(spottmee_redis_up{ {{- $series -}} })
  for: 5m
  severity: warning
  summary: |-
    The exporter's metrics are missing, so alerts that depend on them cannot fire.
- alert: SpottmeeRedisDown
  expr: |-
    max(spottmee_redis_up{ {{- $series -}} }) == 0
  for: 1m
  severity: critical
  summary: |-
    The exporter cannot reach Redis.
{{- if .Values.queues.compare.enabled }}
- alert: SpottmeeGuestWaits
  expr: |-
    max(spottmee_oldest_waiting_seconds{ {{- $series -}} ,queue="compare"}) > {{ int $rules.guestSeconds }}
  for: 0s
  severity: critical
  summary: |-
    A guest has been waiting for {{`{{ $value | humanizeDuration }}`}}, and no run has claimed the comparison.
{{- end }}
- alert: SpottmeeRunsMisconfigured
  expr: |-
    max by (queue, reason) (
      increase(spottmee_runs_total{ {{- $series -}} ,reason=~"settings|schema|model|photos_invisible|redis_permission_missing|postgres_right_missing|device_unavailable"}[15m])
    ) > 0
  for: 0s
  severity: critical
  summary: |-
    Runs of the queue {{`{{ $labels.queue }}`}} fail with {{`{{ $labels.reason }}`}}, which a retry cannot fix.
- alert: SpottmeeDeadLettersGrow
  expr: |-
    max by (queue, code) (
      increase(spottmee_jobs_total{ {{- $series -}} ,outcome="dead_lettered",code!~"no_face_in_selfie|several_faces_in_selfie"}[15m])
    ) > {{ int $rules.deadLetters }}
  for: 0s
  severity: warning
  summary: |-
    {{`{{ $value | humanize }}`}} jobs of the queue {{`{{ $labels.queue }}`}} were dead-lettered with {{`{{ $labels.code }}`}} within 15 minutes.
- alert: SpottmeePhotosWithoutJob
  expr: |-
    max(spottmee_photos_without_job{ {{- $series -}} }) > 0
  for: 20m
  severity: warning
  summary: |-
    {{`{{ $value }}`}} photos have lost their job and will not be processed.
- alert: SpottmeeRedisMemory
  expr: |-
    max(spottmee_redis_memory_used_bytes{ {{- $series -}} } / (spottmee_redis_memory_limit_bytes{ {{- $series -}} } > 0)) > 0.9
  for: 5m
  severity: critical
  summary: |-
    Redis uses {{`{{ $value | humanizePercentage }}`}} of its memory limit; once it is full, it rejects the API's pushes.
- alert: SpottmeeRedisEvicts
  expr: |-
    max by (policy) (spottmee_redis_eviction_policy{ {{- $series -}} ,policy=~"allkeys-.+"}) == 1
  for: 1m
  severity: warning
  summary: |-
    Redis may evict jobs: maxmemory-policy is {{`{{ $labels.policy }}`}}.
- alert: SpottmeeLeasesExpire
  expr: |-
    max by (queue) (increase(spottmee_leases_expired_total{ {{- $series -}} }[10m])) > 0
  for: 0s
  severity: warning
  summary: |-
    Runs of the queue {{`{{ $labels.queue }}`}} die with jobs in flight.
{{- range $name, $queue := .Values.queues }}
{{- if and $queue.enabled (int $queue.gpu.count) }}
- alert: SpottmeeGpuQueueOnCpu
  expr: |-
    max(increase(spottmee_runs_loaded_total{ {{- $series -}} ,queue="{{ $name }}",provider!="cuda"}[30m])) > 0
  for: 0s
  severity: warning
  summary: |-
    The queue {{ $name }} has GPUs, but its runs use the CPU.
{{- end }}
{{- end }}
{{- end -}}

{{/* A group's rules as Prometheus expects them. Takes root, and rules as YAML. */}}
{{- define "spottmee-worker.rules.rendered" -}}
{{- $values := .root.Values.metrics.rules -}}
{{- range fromYamlArray .rules }}
- alert: {{ .alert }}
  expr: {{ .expr | toJson }}
  for: {{ .for }}
  labels:
    {{- toYaml (merge (dict "severity" .severity) $values.alertLabels) | nindent 4 }}
  annotations:
    summary: {{ .summary | toJson }}
    runbook_url: {{ printf "%s#%s" $values.runbookUrl (lower .alert) | quote }}
{{- end }}
{{- end -}}
