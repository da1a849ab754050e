{{- define "spottmee-worker.validate" -}}{{- end -}}
