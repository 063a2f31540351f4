#!/usr/bin/env bash
# Prints a Kubernetes JobSet that trains on GPU nodes, one process a node (the cluster needs JobSet 0.6 or newer):
#   bash launch/jobset.sh --name=base64 --nodes=4 --gpus=8 --image=REGISTRY/ediffi:cuda --claim=data \
#       -- --config=configs/base64.py --config.data.name=/data/pairs --workdir=/data/runs/base64 | kubectl apply -f -
# The image is built from launch/Dockerfile with --build-arg ACCELERATOR=cuda.
#   --claim=NAME         a PersistentVolumeClaim, ReadWriteMany, mounted at /data in every node's pod
#   --max_restarts=100   how often the whole set starts again; exit codes 1 and 2 end it at once
#   --grace=120          seconds from SIGTERM to the end; more than a save takes
#   --selector=KEY=VALUE of the nodes, such as cloud.google.com/gke-accelerator=nvidia-h100-80gb
#   --env=KEY=VALUE,…    for every process, such as NCCL_SOCKET_IFNAME=eth0,NCCL_DEBUG=INFO
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

# shellcheck disable=SC2034 # env is read by its name
name='' nodes='' gpus='' image='' claim='' max_restarts=100 grace=120 selector='' env='NCCL_DEBUG=WARN'
read_flags "name nodes gpus image claim max_restarts grace selector env" "" "$@"
required name base64 nodes 4 gpus 8 image europe-docker.pkg.dev/project/ml/ediffi:cuda
kubernetes_name name
counts 0 max_restarts
counts 1 nodes gpus grace
workdir_for_all /data/runs/base64

# A YAML string.
quoted() {
  local text="${1//\\/\\\\}"
  text="${text//\"/\\\"}"
  printf '"%s"' "${text//$'\n'/\\n}"
}

# pairs FLAG INDENT FORMAT: KEY=VALUE,… of a flag, each in that format.
pairs() {
  local pair
  while IFS= read -r -d, pair; do
    [[ "$pair" == ?*=* ]] || mistake "--$1=${!1}; expected KEY=VALUE,KEY=VALUE"
    # shellcheck disable=SC2059 # the formats are ours, below
    printf "$2" "$(quoted "${pair%%=*}")" "$(quoted "${pair#*=}")"
  done <<<"${!1},"
}

arguments() {
  local word
  for word in -u -m launch.train --distributed --coordinator="$name-node-0-0.$name:8476" --num_processes="$nodes"; do
    printf '                - %s\n' "$(quoted "$word")"
  done
  # shellcheck disable=SC2016 # Kubernetes fills it in
  printf '                - %s\n' "$(quoted '--process_id=$(JOB_COMPLETION_INDEX)')"
  # In a command $$ is a plain dollar sign.
  for word in "${VERB_FLAGS[@]}"; do printf '                - %s\n' "$(quoted "${word//\$/\$\$}")"; done
}

variables="$(pairs env '                - {name: %s, value: %s}\n')"
selected='' mounts='' volumes=''
if [[ -n "$selector" ]]; then selected="$(pairs selector '                %s: %s\n')"; fi
if [[ -n "$claim" ]]; then
  mounts="                - {name: data, mountPath: /data}"
  volumes="              - {name: data, persistentVolumeClaim: {claimName: $(quoted "$claim")}}"
fi

cat <<YAML | sed '/^$/d'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  network: {enableDNSHostnames: true, publishNotReadyAddresses: true}
  failurePolicy:
    maxRestarts: $max_restarts
    rules: # any other failure restarts all nodes together
      - {name: mistake, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
    - name: node
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          completions: $nodes
          parallelism: $nodes
          backoffLimit: 0 # one process cannot come back alone
          podFailurePolicy:
            rules:
              - action: FailJob # 2 is the user's mistake, 1 a bug
                onExitCodes: {containerName: train, operator: In, values: [1, 2]}
              - action: Count # 42 is saved, and wants a restart; so are all others treated
                onExitCodes: {containerName: train, operator: In, values: [42]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $grace
${selected:+              nodeSelector:}
$selected
              tolerations:
              - {key: nvidia.com/gpu, operator: Exists}
              containers:
              - name: train
                image: $(quoted "$image")
                command: [python]
                args:
$(arguments)
                env:
$variables
                ports:
                - {containerPort: 8476}
                resources:
                  limits: {nvidia.com/gpu: $gpus}
                volumeMounts:
                - {name: memory, mountPath: /dev/shm}
$mounts
              volumes:
              - {name: memory, emptyDir: {medium: Memory}}
$volumes
YAML
