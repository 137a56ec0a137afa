{{- /* One DaemonSet. The dictionary has `root` and `set`, an item of rolegate.daemonSets. */}}
{{- define "rolegate.daemonSet" -}}
{{- $root := .root }}
{{- $values := .root.Values }}
{{- $set := .set }}
{{- $flags := .set.flags }}
{{- $surge := $values.surge.enabled }}
{{- $bpf := eq (index $flags "redirect" | default "") "bpf" }}
{{- $selector := include "rolegate.selectorLabels" $root | fromYaml }}
{{- with $set.pool }}{{ $_ := set $selector "rolegate.io/node-pool" . }}{{ end }}
{{- $podIdentity := eq (index $flags "pod-identity" | toString) "true" }}
{{- $capabilities := list "NET_ADMIN" }}
{{- /* The self-test is on by default if the daemon manages packet rules. YAML reads on and off as true and false. */}}
{{- $rules := or (eq (index $flags "iptables" | toString) "true") (ne (index $flags "redirect" | default "none") "none") }}
{{- $selfTest := ternary "auto" (index $flags "self-test" | toString) (kindIs "invalid" (index $flags "self-test")) }}
{{- if or (has $selfTest (list "on" "true")) (and $rules (eq $selfTest "auto")) }}{{ $capabilities = append $capabilities "SYS_ADMIN" }}{{ end }}
{{- if $bpf }}{{ $capabilities = append $capabilities "BPF" }}{{ end }}
{{- $ports := list (index $flags "app-port" | default 8181 | int) (index $flags "metrics-port" | default 9543 | int) }}
{{- if or $podIdentity (lt (min (index $ports 0) (index $ports 1)) 1024) }}{{ $capabilities = append $capabilities "NET_BIND_SERVICE" }}{{ end }}
{{- /* The packet rules need root and NET_ADMIN. At startup, the daemon drops every capability that it does not need. */}}
{{- $securityContext := dict "runAsUser" 0 "privileged" false "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true
  "capabilities" (dict "drop" (list "ALL") "add" $capabilities) "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- range $key, $value := $values.securityContext }}{{ $_ := set $securityContext $key $value }}{{ end }}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $set.name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "rolegate.labels" $root | nindent 4 }}
  {{- with $values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  selector:
    matchLabels:
      {{- toYaml $selector | nindent 6 }}
  {{- if not (kindIs "invalid" $values.revisionHistoryLimit) }}
  revisionHistoryLimit: {{ $values.revisionHistoryLimit }}
  {{- end }}
  {{- with $values.minReadySeconds }}
  minReadySeconds: {{ . }}
  {{- end }}
  updateStrategy:
    {{- if $values.uninstall }}
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 100%
    {{- else if $values.updateStrategy }}
    {{- toYaml $values.updateStrategy | nindent 4 }}
    {{- else if $surge }}
    {{- /* A node's new daemon starts while the old one still runs, and takes over its listening socket. */}}
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
    {{- else }}
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 10%
    {{- end }}
  template:
    metadata:
      labels:
        {{- toYaml (merge (deepCopy $selector) $values.podLabels) | nindent 8 }}
      {{- with $values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "rolegate.serviceAccountName" $root }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      enableServiceLinks: false
      hostNetwork: true
      dnsPolicy: {{ $values.dnsPolicy }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with include "rolegate.affinity" . | trim }}
      affinity:
        {{- . | nindent 8 }}
      {{- end }}
      terminationGracePeriodSeconds: {{ ternary 1 $values.terminationGracePeriodSeconds $values.uninstall }}
      {{- with $values.podSecurityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $values.uninstall }}
      {{- include "rolegate.uninstall" (dict "root" $root "securityContext" $securityContext) | nindent 6 }}
      {{- else }}
      containers:
        - name: rolegate
          image: {{ include "rolegate.image" $root }}
          {{- with $values.image.pullPolicy }}
          imagePullPolicy: {{ . }}
          {{- end }}
          args:
            - --node=$(NODE_NAME)
            {{- if not (hasKey $flags "host-ip") }}
            - --host-ip=$(HOST_IP)
            {{- end }}
            {{- include "rolegate.arguments" $flags | trim | nindent 12 }}
            {{- if $surge }}
            - --handover-socket=/run/rolegate/handover
            {{- end }}
            - --probe-socket=/run/rolegate-probe/socket
            {{- range $values.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            - name: NODE_NAME
              valueFrom:
                fieldRef:
                  fieldPath: spec.nodeName
            - name: HOST_IP
              valueFrom:
                fieldRef:
                  fieldPath: status.hostIP
            {{- with $values.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $values.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- if not $surge }}
          {{- /* With surge, two daemons overlap, and the scheduler does not place two pods with the same host port on one node. */}}
          ports:
            - name: metadata
              containerPort: {{ index $flags "app-port" | default 8181 }}
              hostPort: {{ index $flags "app-port" | default 8181 }}
              protocol: TCP
            - name: metrics
              containerPort: {{ index $flags "metrics-port" | default 9543 }}
              hostPort: {{ index $flags "metrics-port" | default 9543 }}
              protocol: TCP
          {{- end }}
          {{- include "rolegate.probes" $values | nindent 10 }}
          volumeMounts:
            - name: state
              mountPath: /run/rolegate
            - name: bpf
              mountPath: /sys/fs/bpf
            {{- if $values.cniDirectory }}
            - name: cni
              mountPath: {{ $values.cniDirectory }}
              readOnly: true
            {{- end }}
            - name: probe
              mountPath: /run/rolegate-probe
            {{- if $bpf }}
            - name: cgroup
              mountPath: /host/sys/fs/cgroup
              readOnly: true
            {{- end }}
            {{- if $podIdentity }}
            - name: cgroup-of-pods
              mountPath: /host/cgroup
              readOnly: true
            {{- end }}
            {{- with $values.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $values.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
            {{- toYaml $securityContext | nindent 12 }}
        {{- with $values.extraContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumes:
        {{- /* In memory: the keys of session tokens survive a restart of the daemon, but not a reboot of the node. */}}
        - name: state
          hostPath:
            path: {{ $values.stateDirectory }}
            type: DirectoryOrCreate
        {{- if $values.cniDirectory }}
        - name: cni
          hostPath:
            path: {{ $values.cniDirectory }}
            type: DirectoryOrCreate
        {{- end }}
        {{- /* Also without redirect=bpf: the daemon removes programs that an earlier one left there. */}}
        - name: bpf
          hostPath:
            path: /sys/fs/bpf
            type: Directory
        - name: probe
          emptyDir:
            medium: Memory
        {{- if $bpf }}
        - name: cgroup
          hostPath:
            path: /sys/fs/cgroup
            type: Directory
        {{- end }}
        {{- if $podIdentity }}
        - name: cgroup-of-pods
          hostPath:
            path: /sys/fs/cgroup
            type: Directory
        {{- end }}
        {{- with $values.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
{{- end }}

{{- /* The affinity of the values. Each of its terms for nodes also has the requirement of the node pool. */}}
{{- define "rolegate.affinity" -}}
{{- $values := .root.Values }}
{{- $affinity := deepCopy (default dict $values.affinity) }}
{{- $requirement := dict }}
{{- if .set.pool }}
{{- $requirement = dict "key" $values.nodePools.label "operator" "In" "values" .set.values }}
{{- else if .set.not }}
{{- $requirement = dict "key" $values.nodePools.label "operator" "NotIn" "values" .set.not }}
{{- end }}
{{- if $requirement }}
{{- $node := default dict $affinity.nodeAffinity }}
{{- $required := default dict $node.requiredDuringSchedulingIgnoredDuringExecution }}
{{- $terms := list }}
{{- range default (list dict) $required.nodeSelectorTerms }}
{{- $term := deepCopy . }}
{{- $_ := set $term "matchExpressions" (append (default list $term.matchExpressions) $requirement) }}
{{- $terms = append $terms $term }}
{{- end }}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) }}
{{- $_ := set $affinity "nodeAffinity" $node }}
{{- end }}
{{- with $affinity }}{{ toYaml . }}{{ end }}
{{- end }}

{{- /* With surge, while two daemons overlap, the metrics port belongs to the old one. These probes ask the daemon of their own pod. */}}
{{- define "rolegate.probes" -}}
livenessProbe:
  {{- if .livenessProbe }}
  {{- toYaml .livenessProbe | nindent 2 }}
  {{- else }}
  exec:
    command: [rolegate, probe, live, --probe-socket=/run/rolegate-probe/socket]
  initialDelaySeconds: 5
  periodSeconds: 10
  timeoutSeconds: 3
  {{- end }}
readinessProbe:
  {{- if .readinessProbe }}
  {{- toYaml .readinessProbe | nindent 2 }}
  {{- else }}
  exec:
    command: [rolegate, probe, ready, --probe-socket=/run/rolegate-probe/socket]
  periodSeconds: 5
  timeoutSeconds: 3
  {{- end }}
{{- end }}

{{- /* In place of the daemon, each node removes its rules and then does nothing. The rollout is complete when every node is done. */}}
{{- define "rolegate.uninstall" -}}
{{- $values := .root.Values }}
initContainers:
  {{- /* It refuses while a daemon runs on the node, and is started again until that has ended. With this flag, a process that only poses as a
         daemon does not count. It needs only NET_ADMIN. */}}
  - name: redirect-remove
    image: {{ include "rolegate.image" .root }}
    {{- with $values.image.pullPolicy }}
    imagePullPolicy: {{ . }}
    {{- end }}
    args: [redirect, remove, --handover-socket=/run/rolegate/handover]
    volumeMounts:
      - name: state
        mountPath: /run/rolegate
        readOnly: true
      - name: bpf
        mountPath: /sys/fs/bpf
    securityContext:
      {{- toYaml (set (deepCopy .securityContext) "capabilities" (dict "drop" (list "ALL") "add" (list "NET_ADMIN"))) | nindent 6 }}
containers:
  - name: rolegate
    image: {{ include "rolegate.image" .root }}
    {{- with $values.image.pullPolicy }}
    imagePullPolicy: {{ . }}
    {{- end }}
    args: [wait]
    {{- with $values.resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- toYaml (set (deepCopy .securityContext) "capabilities" (dict "drop" (list "ALL"))) | nindent 6 }}
volumes:
  - name: state
    hostPath:
      path: {{ $values.stateDirectory }}
      type: DirectoryOrCreate
  - name: bpf
    hostPath:
      path: /sys/fs/bpf
      type: Directory
{{- end }}
