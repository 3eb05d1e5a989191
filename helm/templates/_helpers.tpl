{{- define "ramsift.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "ramsift.labels" -}}
app.kubernetes.io/name: ramsift
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "ramsift.selector" -}}
app.kubernetes.io/name: ramsift
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "ramsift.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "ramsift.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Name of the secret with a component's certificate. Takes root, component (coordinator, aggregator, worker, client). */}}
{{- define "ramsift.tlsSecret" -}}
{{- if .root.Values.tls.certManager.enabled -}}
{{- printf "%s-%s-tls" (include "ramsift.name" .root) .component -}}
{{- else -}}
{{- get .root.Values.tls.secrets .component -}}
{{- end -}}
{{- end -}}

{{/* What a component shows and whom it trusts, as variables. Takes root, component. */}}
{{- define "ramsift.securityEnv" -}}
{{- $server := has .component (list "coordinator" "aggregator") -}}
{{- $role := ternary .component "worker" (eq .component "coordinator") -}}
{{- if .root.Values.tls.insecure }}
{{- if $server }}
- name: RAMSIFT_SERVER_INSECURE
  value: "true"
{{- end }}
{{- else }}
{{- if $server }}
- name: RAMSIFT_SERVER_CERT_FILE
  value: /etc/ramsift/tls/tls.crt
- name: RAMSIFT_SERVER_KEY_FILE
  value: /etc/ramsift/tls/tls.key
{{- if .root.Values.tls.tokens }}
- name: RAMSIFT_SERVER_TOKEN_FILE
  value: {{ ternary "/etc/ramsift/tokens/client" "/etc/ramsift/tokens/worker,/etc/ramsift/tokens/coordinator" (eq .component "coordinator") }}
{{- else }}
- name: RAMSIFT_SERVER_CLIENT_CA_FILE
  value: /etc/ramsift/tls/ca.crt
{{- end }}
{{- end }}
{{- if ne .component "aggregator" }}
- name: RAMSIFT_CLIENT_CA_FILE
  value: /etc/ramsift/tls/ca.crt
{{- if .root.Values.tls.tokens }}
- name: RAMSIFT_CLIENT_TOKEN_FILE
  value: /etc/ramsift/tokens/{{ $role }}
{{- else }}
- name: RAMSIFT_CLIENT_CERT_FILE
  value: /etc/ramsift/tls/tls.crt
- name: RAMSIFT_CLIENT_KEY_FILE
  value: /etc/ramsift/tls/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The files of that, as volumes. Each pod gets what it shows or compares, and no more. Takes root, component. */}}
{{- define "ramsift.securityVolumes" -}}
{{- $server := has .component (list "coordinator" "aggregator") -}}
{{- $tokens := .root.Values.tls.tokens -}}
{{- if not .root.Values.tls.insecure }}
- name: tls
  secret:
    {{- if $server }}
    secretName: {{ include "ramsift.tlsSecret" . }}
    {{- else if $tokens }}
    # Whom to trust is in the secret of whom it calls.
    secretName: {{ include "ramsift.tlsSecret" (dict "root" .root "component" "aggregator") }}
    items:
      - {key: ca.crt, path: ca.crt}
    {{- else }}
    secretName: {{ include "ramsift.tlsSecret" (dict "root" .root "component" "worker") }}
    {{- end }}
    defaultMode: 0440
{{- if $tokens }}
- name: tokens
  secret:
    secretName: {{ $tokens }}
    defaultMode: 0440
    items:
      {{- if eq .component "coordinator" }}
      - {key: client, path: client}
      {{- else }}
      - {key: worker, path: worker}
      {{- end }}
      {{- if $server }}
      - {key: coordinator, path: coordinator}
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* One deployment. Takes root, component, values (of the component), grpc (port or 0), env. */}}
{{- define "ramsift.deployment" -}}
{{- $name := printf "%s-%s" (include "ramsift.name" .root) .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "ramsift.labels" . | nindent 4 }}
spec:
  replicas: {{ .values.replicas }}
  selector:
    matchLabels:
      {{- include "ramsift.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "ramsift.labels" . | nindent 8 }}
      annotations:
        checksum/config: {{ include (print .root.Template.BasePath "/configmap.yaml") .root | sha256sum }}
        {{- if .root.Values.metrics.scrape }}
        prometheus.io/scrape: "true"
        prometheus.io/port: "7480"
        prometheus.io/path: /metrics
        {{- end }}
        {{- with .root.Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "ramsift.serviceAccount" .root }}
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile:
          type: RuntimeDefault
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ printf "%s:%s" .root.Values.image.repository (default .root.Chart.AppVersion .root.Values.image.tag) | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: ["{{ .component }}"]
          envFrom:
            - configMapRef:
                name: {{ include "ramsift.name" .root }}-config
            - secretRef:
                name: {{ .root.Values.secrets.queue }}
            - secretRef:
                name: {{ .root.Values.secrets.ledger }}
            {{- with .root.Values.secrets.s3 }}
            - secretRef:
                name: {{ . }}
            {{- end }}
          env:
            - name: RAMSIFT_WORKER_GRACE_SECONDS
              value: {{ sub (int .values.terminationGracePeriodSeconds) 5 | max 1 | quote }}
            {{- if .root.Values.secrets.queueCa }}
            - name: RAMSIFT_QUEUE_CA_FILE
              value: /etc/ramsift/queue-ca/ca.crt
            {{- end }}
            {{- if .root.Values.secrets.ledgerCa }}
            - name: RAMSIFT_LEDGER_CA_FILE
              value: /etc/ramsift/ledger-ca/ca.crt
            {{- end }}
            {{- if .root.Values.secrets.s3Ca }}
            - name: RAMSIFT_S3_CA_FILE
              value: /etc/ramsift/s3-ca/ca.crt
            {{- end }}
            {{- if .root.Values.secrets.s3Buckets }}
            - name: RAMSIFT_S3_BUCKETS_FILE
              value: /etc/ramsift/s3-buckets/buckets.toml
            {{- end }}
            {{- if .root.Values.secrets.s3CustomerKey }}
            - name: RAMSIFT_S3_SSE_C_KEY_FILE
              value: /etc/ramsift/s3-customer-key/key
            {{- end }}
            {{- with include "ramsift.securityEnv" . | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- range $k, $v := .env }}
            - name: {{ $k }}
              value: {{ $v | quote }}
            {{- end }}
            {{- range $k, $v := .root.Values.otel }}
            - name: {{ $k }}
              value: {{ $v | quote }}
            {{- end }}
          ports:
            - name: http
              containerPort: 7480
            {{- if .grpc }}
            - name: grpc
              containerPort: {{ .grpc }}
            {{- end }}
          startupProbe:
            httpGet: {path: /livez, port: http}
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /livez, port: http}
            periodSeconds: 10
            timeoutSeconds: 3
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
            timeoutSeconds: 3
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: ["ALL"]
          volumeMounts:
            - name: tmp
              mountPath: /tmp
            {{- if .root.Values.secrets.queueCa }}
            - name: queue-ca
              mountPath: /etc/ramsift/queue-ca
              readOnly: true
            {{- end }}
            {{- if .root.Values.secrets.ledgerCa }}
            - name: ledger-ca
              mountPath: /etc/ramsift/ledger-ca
              readOnly: true
            {{- end }}
            {{- if .root.Values.secrets.s3Ca }}
            - name: s3-ca
              mountPath: /etc/ramsift/s3-ca
              readOnly: true
            {{- end }}
            {{- if .root.Values.secrets.s3Buckets }}
            - name: s3-buckets
              mountPath: /etc/ramsift/s3-buckets
              readOnly: true
            {{- end }}
            {{- if .root.Values.secrets.s3CustomerKey }}
            - name: s3-customer-key
              mountPath: /etc/ramsift/s3-customer-key
              readOnly: true
            {{- end }}
            {{- if not .root.Values.tls.insecure }}
            - name: tls
              mountPath: /etc/ramsift/tls
              readOnly: true
            {{- if .root.Values.tls.tokens }}
            - name: tokens
              mountPath: /etc/ramsift/tokens
              readOnly: true
            {{- end }}
            {{- end }}
      volumes:
        {{- with .root.Values.secrets.queueCa }}
        - name: queue-ca
          secret:
            secretName: {{ . }}
        {{- end }}
        {{- with .root.Values.secrets.ledgerCa }}
        - name: ledger-ca
          secret:
            secretName: {{ . }}
        {{- end }}
        {{- with .root.Values.secrets.s3Ca }}
        - name: s3-ca
          secret:
            secretName: {{ . }}
        {{- end }}
        {{- with .root.Values.secrets.s3Buckets }}
        - name: s3-buckets
          secret:
            secretName: {{ . }}
        {{- end }}
        {{- with .root.Values.secrets.s3CustomerKey }}
        - name: s3-customer-key
          secret:
            secretName: {{ . }}
        {{- end }}
        {{- with include "ramsift.securityVolumes" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        - name: tmp
          emptyDir:
            sizeLimit: {{ default "256Mi" .tmp }}
      {{- with .root.Values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end -}}

{{- /* Gibibytes as bytes. */}}
{{- define "ramsift.gibibytes" -}}
{{- mul . 1073741824 -}}
{{- end }}
