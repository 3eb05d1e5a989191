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
      volumes:
        {{- with .root.Values.secrets.queueCa }}
        - name: queue-ca
          secret:
            secretName: {{ . }}
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
