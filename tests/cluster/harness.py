"""What the suites of checks share: commands on the cluster, objects, logs, waiting, and the loop over the checks of a suite."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
CACHE = os.environ.get("CLUSTER_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rolegate-cluster"
)
STATE = os.environ.get("CLUSTER_STATE") or os.path.join(CACHE, "state")
# The kubectl command, which runs with the permissions of an administrator.
KUBECTL = shlex.split(os.environ.get("KUBECTL") or shlex.quote(os.path.join(HERE, "cluster")) + " kubectl")
ROLEGATE = os.environ.get("ROLEGATE") or os.path.join(REPOSITORY, "target", "debug", "rolegate")
DAEMON = ["--namespace", "kube-system"]
SELECTOR = "app.kubernetes.io/name=rolegate"
ACCOUNT = "system:serviceaccount:kube-system:rolegate"
NODE_ROLE = "NODE-ROLE-MUST-NEVER-LEAK"
ROLE = "iam.amazonaws.com/role"
CLIENT = "registry.example.com/client:1"
# Seconds between two checks of a condition, and the time limit in seconds for a condition or a command.
PAUSE, TIMEOUT = 0.2, 120

KUSTOMIZATION = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [{base}]
components: {components}
patches:
  - target: {{kind: DaemonSet, name: rolegate}}
    patch: |
      - {{op: add, path: /spec/template/spec/containers/0/env/-, value: {{name: AWS_ENDPOINT_URL_STS, value: "http://10.0.0.1:5000"}}}}
"""


class Failed(Exception):
    """A check failed."""


# --- commands --------------------------------------------------------------------------------------------------------


def attempt(*command, text=None, timeout=TIMEOUT):
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)


def run(*command, check=True, **options):
    """Returns what a command prints."""
    done = attempt(*command, **options)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def cluster(*arguments, **options):
    return run(os.path.join(HERE, "cluster"), *arguments, **options)


def node(*command, **options):
    """Returns what a command prints in the node's namespaces."""
    return cluster("node", *command, **options)


def kubectl(*arguments, **options):
    return run(*KUBECTL, *arguments, **options)


def refusal(*arguments, text=None):
    """Returns why `kubectl` fails, or None."""
    done = attempt(*KUBECTL, *arguments, text=text)
    return None if done.returncode == 0 else done.stderr


def get(*arguments):
    """Returns an object, or the list of objects, that `kubectl get` finds."""
    return json.loads(kubectl("get", *arguments, "--output=json"))


def ask(space, name, *request):
    """Returns what the program `ask` prints in a pod."""
    return kubectl("exec", "--namespace", space, name, "--", "ask", *request, check=False)


# --- expectations ----------------------------------------------------------------------------------------------------


def expect(condition, what):
    if not condition:
        raise Failed(what)


def expect_equal(actual, wanted, what):
    expect(actual == wanted, f"{what}: {actual!r}, expected {wanted!r}")


def wait_until(what, condition, timeout=TIMEOUT):
    """Returns the first true result of a condition."""
    until = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > until:
            raise Failed(f"gave up waiting for {what}; the last result was {result!r}")
        time.sleep(PAUSE)


def has_role(space, name, role):
    """Returns whether a pod gets credentials of a role."""
    words = ask(space, name, "role").split()
    return len(words) == 2 and words[0] == role and is_key_of(role, words[1])


def is_key_of(role, key):
    """Returns whether an access key ID is one that the fake STS issues for a role: it contains the first letters of the role's name."""
    return key.startswith("ASIA" + "".join(filter(str.isalnum, role)).upper()[:8].ljust(8, "X"))


def wait_for_role(space, name, role):
    wait_until(f"the credentials of {role} in {space}/{name}", lambda: has_role(space, name, role))


# --- objects ---------------------------------------------------------------------------------------------------------


def namespace(name, roles=()):
    annotations = {"iam.amazonaws.com/allowed-roles": json.dumps(roles)} if roles else {}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}}


def account(space, name, labels=None):
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": space, "labels": labels or {}}}


def client(*command, name="client", **fields):
    """Returns a container with `curl` and `ask`. Without a command it does nothing for ever."""
    return {"name": name, "image": CLIENT, "command": list(command) or ["sleep", "infinity"], **fields}


def template(role=None, containers=None, labels=None, **spec):
    """Returns the template of a pod."""
    return {
        "metadata": {"annotations": {ROLE: role} if role else {}, "labels": labels or {}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": containers or [client()],
            **spec,
        },
    }


def pod(space, name, role=None, **spec):
    made = template(role, **spec)
    made["metadata"] |= {"name": name, "namespace": space}
    return {"apiVersion": "v1", "kind": "Pod", **made}


def apply(*objects):
    """Creates or changes objects."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    try:
        kubectl("apply", "--filename=-", text=text)
    except Failed as failed:
        # A controller may create the default service account of a namespace at the same time.
        if "AlreadyExists" not in str(failed):
            raise
        kubectl("apply", "--filename=-", text=text)


def start(*objects):
    """Creates or changes objects, and waits until the pods among them are ready. It takes a kubelet."""
    apply(*objects)
    for one in objects:
        if one["kind"] == "Pod":
            name, space = one["metadata"]["name"], one["metadata"]["namespace"]
            kubectl("wait", "--namespace", space, "--for=condition=Ready", f"pod/{name}", f"--timeout={TIMEOUT - 10}s")


# --- the daemon ------------------------------------------------------------------------------------------------------


def deploy(*components):
    """Applies the manifests with these components, and waits for the daemon."""
    directory = os.path.join(STATE, "manifests")
    os.makedirs(directory, exist_ok=True)
    base = os.path.relpath(os.path.join(REPOSITORY, "daemonset"), directory)
    with open(os.path.join(directory, "kustomization.yaml"), "w", encoding="utf-8") as file:
        file.write(KUSTOMIZATION.format(base=base, components=json.dumps([f"{base}/{name}" for name in components])))
    kubectl("apply", "--kustomize", directory)
    await_rollout()


def await_rollout():
    kubectl("rollout", "status", *DAEMON, "daemonset/rolegate", f"--timeout={TIMEOUT - 10}s")


def daemons():
    """Returns the names of the daemon's pods."""
    return kubectl("get", "pods", *DAEMON, "--selector", SELECTOR, "--output=name").split()


def restart_the_daemon():
    """Replaces the daemon by a rolling update."""
    before = daemons()
    kubectl("rollout", "restart", *DAEMON, "daemonset/rolegate")
    await_rollout()
    wait_until("the end of the old daemon", lambda: len(daemons()) == 1 and daemons() != before)


def scrape():
    """Returns the text of the daemon's metrics."""
    return node("curl", "--silent", "--show-error", "--fail", "http://10.0.0.1:9543/metrics")


def metrics(text=None):
    """Returns the samples of the daemon, or of a scrape: name with labels, and value."""
    lines = (line.rsplit(" ", 1) for line in (text or scrape()).splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def network_of(space, name):
    """Returns the path of a pod's network namespace, in the node."""
    address = get("pod", "--namespace", space, name)["status"]["podIP"]
    for path in node("find", "/run/netns", "-type", "f").split():
        if f" {address}/" in node("nsenter", f"--net={path}", "ip", "-oneline", "address", check=False):
            return path
    raise Failed(f"no network namespace has the address of {space}/{name}, {address}")


@contextlib.contextmanager
def load(space, name):
    """Sends requests from a pod's network meanwhile. The dictionary that it gives contains `sent` and `failed` at the end. It does not
    need the API server, as `kubectl exec` does."""
    stop = os.path.join(STATE, "stop")
    for left in (stop, stop + ".sent"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)
    command = [os.path.join(HERE, "cluster"), "node", "nsenter", f"--net={network_of(space, name)}", os.path.join(HERE, "ask"), "load", stop]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    result = {}
    try:
        yield result
    finally:
        with open(stop, "w", encoding="utf-8"):
            pass
        told, _ = running.communicate(timeout=TIMEOUT)
        result |= dict(zip(("sent", "failed"), map(int, told.split()[-2:])))


def sent_so_far():
    """Returns how many requests the load has sent."""
    with contextlib.suppress(FileNotFoundError, ValueError), open(os.path.join(STATE, "stop.sent"), encoding="utf-8") as file:
        return int(file.read())
    return 0


def log_of(name):
    """Returns the lines of one of the logs, decoded."""
    lines = []
    with contextlib.suppress(FileNotFoundError), open(os.path.join(STATE, "logs", name), encoding="utf-8") as file:
        for line in file:
            # The last line may still be written.
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines


# --- suites ----------------------------------------------------------------------------------------------------------


def main(*checks):
    """Prints a line for each check. Exits with 1 at the first that fails."""
    for check in checks:
        name = check.__name__.replace("_", " ")
        begin = time.monotonic()
        try:
            note = check()
        except (Failed, subprocess.SubprocessError, KeyError, ValueError) as error:
            print(f"failed  {name}: {error if isinstance(error, Failed) else repr(error)}", flush=True)
            sys.exit(1)
        print(f"ok      {name} ({time.monotonic() - begin:.1f} s){': ' + note if note else ''}", flush=True)
