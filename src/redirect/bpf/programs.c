/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's programs of `--redirect=bpf`. scripts/build-bpf compiles them; docs/bpf.md describes them.
 *
 * On the control group of all pods:
 *
 * - mark_socket (sock_create) marks sockets that are made in the node's own network;
 * - connect4 and connect6 send connections to port 80 of the metadata address to the daemon instead, and deny everything else that is
 *   to be connected to that address;
 * - record_connection (sockops) records, for the daemon, who opened such a connection, until it is closed;
 * - getpeername4 and getpeername6 name the metadata address as the peer of such a connection;
 * - drop_egress (cgroup_skb) drops every packet to the metadata address, and those of a redirected connection that another program
 *   sent elsewhere;
 * - deny_bypass (setsockopt) keeps sockets in the node's network from sending past exit_guard.
 *
 * On the egress of the node's interfaces, exit_guard drops packets to the metadata address unless an IP socket of the node itself,
 * outside of the pods' control group, sent them.
 *
 * Everything is denied while there is no configuration. A program may run twice for one packet or connection while a new daemon
 * replaces it, so each gives the same result the second time. Only `passed` then counts a connection twice.
 */
#include "kernel.h"

/* Reads a field here and now: the compiler must not make a pointer to it that the verifier does not allow. */
#define READ(field) (*(volatile typeof(field) *)&(field))

#define METADATA_PORT 80
/* 169.254.169.254 */
#define METADATA_V4 bpf_htonl(0xa9fea9feu)
/* fd00:ec2::254, in four words */
#define METADATA_V6_0 bpf_htonl(0xfd000ec2u)
#define METADATA_V6_3 bpf_htonl(0x00000254u)
/* ::ffff:0:0/96, the third word */
#define MAPPED bpf_htonl(0x0000ffffu)

/* The connections that one pod may have open to the daemon. 512 pods may have as many. */
#define MAX_OF_POD 256
#define MAX_CONNECTIONS 131072
#define MAX_PODS 8192

/* Results of programs on control groups. */
#define DENY 0
#define ALLOW 1

/* Flags of the configuration. */
#define REDIRECT 1
#define PASS_HOST_NETWORK 2

/* The states of a socket. */
#define NOT_REDIRECTED 0
#define CONNECTING 1
#define RECORDED 2
/* Another program sent it elsewhere than to the daemon. */
#define MISDIRECTED 3

struct config {
	/* The control group of all pods. */
	__u64 pods;
	/* The cookie of the node's network namespace; 0 for the initial one. */
	__u64 host_network;
	/* The control groups of the QoS classes below it, in which there are pods; 0 if there is none. */
	__u64 classes[2];
	/* The depth of the pods' control group below the root. */
	__u32 level;
	__u32 flags;
	/* The daemon's addresses and port, in network byte order; 0 if it has none. */
	__u32 daemon_v4;
	__u32 daemon_v6[4];
	__u32 port;
};

struct mark {
	/* The control group that connected, and that of its pod. */
	__u64 cgroup;
	__u64 pod;
	__u32 state;
	/* Whether the socket is in the node's own network. */
	__u32 in_host_network;
	/* Whether it was connected to the IPv6 address of the metadata service. */
	__u32 to_v6;
	/* Whether it counts for its pod. */
	__u32 counted;
};

struct connection {
	/* Addresses in network byte order, IPv4 addresses as IPv4-mapped ones; ports in host byte order. */
	__u32 client[4];
	__u32 daemon[4];
	__u16 client_port;
	__u16 daemon_port;
	/* Sockets in other networks cannot pretend to have the node's addresses. */
	__u32 in_host_network;
};

struct record {
	/* The control group of the pod, and that of the process: only the kubelet creates the former. */
	__u64 pod;
	__u64 cgroup;
	__u64 socket;
	__u64 to_v6;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} config SEC(".maps");

/*
 * The control groups of pods that may use the real metadata service, from the node's own network. Their sockets in other networks are
 * treated like those of any pod. Agents that enter the networks of pods have such sockets, and so does the daemon's self-test.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} exempt SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_CONNECTIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct connection);
	__type(value, struct record);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} connections SEC(".maps");

/* The number of connections in `connections`, by pod. Idle pods are forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} open SEC(".maps");

/* How often a pod in the node's network connected to the real metadata service, by pod. Idle pods are forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} passed SEC(".maps");

static __always_inline struct config *configuration(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&config, &key);
}

static __always_inline int is_host_network(const struct config *config, void *ctx)
{
	__u64 host = config->host_network ? config->host_network : bpf_get_netns_cookie(NULL);

	return bpf_get_netns_cookie(ctx) == host;
}

static __always_inline int is_in(void *map, __u64 cgroup)
{
	return cgroup && bpf_map_lookup_elem(map, &cgroup);
}

/* Pods are one level below the pods' control group, or two, by their quality of service. */
static __always_inline int is_current_exempt(const struct config *config)
{
	return is_in(&exempt, bpf_get_current_ancestor_cgroup_id(config->level + 1)) ||
	       is_in(&exempt, bpf_get_current_ancestor_cgroup_id(config->level + 2));
}

/* The control group of the pod. Its containers cannot make others like it. */
static __always_inline __u64 current_pod(const struct config *config)
{
	__u64 pod = bpf_get_current_ancestor_cgroup_id(config->level + 1);

	if (pod && (pod == config->classes[0] || pod == config->classes[1]))
		pod = bpf_get_current_ancestor_cgroup_id(config->level + 2);
	return pod ? pod : bpf_get_current_cgroup_id();
}

/* Counts a connection that is let through. Whether it is counted changes nothing for it. */
static __always_inline void count_passed(const struct config *config)
{
	__u64 pod = current_pod(config), none = 0, *count;

	count = bpf_map_lookup_elem(&passed, &pod);
	if (!count) {
		bpf_map_update_elem(&passed, &pod, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&passed, &pod);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline struct mark *mark_of(struct bpf_sock *sk)
{
	return sk ? bpf_sk_storage_get(&marks, sk, NULL, 0) : NULL;
}

SEC("cgroup/sock_create")
int mark_socket(struct bpf_sock *ctx)
{
	struct config *config = configuration();
	struct mark *mark;

	if (config && is_host_network(config, ctx)) {
		mark = bpf_sk_storage_get(&marks, ctx, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (mark)
			mark->in_host_network = 1;
	}
	return ALLOW;
}

/* What happens to a connection to the metadata address. */
#define TO_DAEMON 2

static __always_inline int connect_to_metadata(struct bpf_sock_addr *ctx, const struct config *config, int to_v6)
{
	int in_host_network;
	struct mark *mark;
	__u32 *count;
	__u64 pod;

	in_host_network = is_host_network(config, ctx);
	if (!ctx->sk)
		return DENY;
	if (in_host_network && ((config->flags & PASS_HOST_NETWORK) || is_current_exempt(config))) {
		/* It may be older than the programs. */
		mark = bpf_sk_storage_get(&marks, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (!mark)
			return DENY;
		mark->in_host_network = 1;
		mark->state = NOT_REDIRECTED;
		count_passed(config);
		return ALLOW;
	}
	if (!(config->flags & REDIRECT) || ctx->protocol != IPPROTO_TCP || ctx->user_port != bpf_htons(METADATA_PORT))
		return DENY;
	if (to_v6 ? !config->daemon_v6[0] && !config->daemon_v6[3] : !config->daemon_v4)
		return DENY;
	pod = current_pod(config);
	count = bpf_map_lookup_elem(&open, &pod);
	if (count && *count >= MAX_OF_POD)
		return DENY;
	mark = bpf_sk_storage_get(&marks, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!mark)
		return DENY;
	mark->cgroup = bpf_get_current_cgroup_id();
	mark->pod = pod;
	mark->in_host_network = in_host_network;
	mark->to_v6 = to_v6;
	mark->state = CONNECTING;
	return TO_DAEMON;
}

/* The socket connects to another address than the metadata service's. */
static __always_inline void connect_elsewhere(struct bpf_sock_addr *ctx, int is_daemon)
{
	struct mark *mark = mark_of(ctx->sk);

	/* An earlier program may have redirected it in this very call. */
	if (mark && !(is_daemon && mark->state == CONNECTING))
		mark->state = NOT_REDIRECTED;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct config *config = configuration();
	int result;

	if (ctx->user_ip4 != METADATA_V4) {
		connect_elsewhere(ctx, config && ctx->user_ip4 == config->daemon_v4 && ctx->user_port == config->port);
		return ALLOW;
	}
	if (!config)
		return DENY;
	result = connect_to_metadata(ctx, config, 0);
	if (result == TO_DAEMON) {
		ctx->user_ip4 = config->daemon_v4;
		ctx->user_port = config->port;
	}
	return result == DENY ? DENY : ALLOW;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct config *config = configuration();
	__u32 a = ctx->user_ip6[0], b = ctx->user_ip6[1], c = ctx->user_ip6[2], d = ctx->user_ip6[3];
	int is_mapped = !a && !b && c == MAPPED;
	int result;

	if (is_mapped ? d != METADATA_V4 : a != METADATA_V6_0 || b || c || d != METADATA_V6_3) {
		int is_daemon = 0;

		if (config && ctx->user_port == config->port)
			is_daemon = is_mapped ? d == config->daemon_v4
					      : a == config->daemon_v6[0] && b == config->daemon_v6[1] &&
							c == config->daemon_v6[2] && d == config->daemon_v6[3];
		connect_elsewhere(ctx, is_daemon);
		return ALLOW;
	}
	if (!config)
		return DENY;
	result = connect_to_metadata(ctx, config, !is_mapped);
	if (result == TO_DAEMON) {
		__u32 to_v4 = READ(config->daemon_v4), to_v6 = READ(config->daemon_v6[3]);

		if (!is_mapped) {
			ctx->user_ip6[0] = config->daemon_v6[0];
			ctx->user_ip6[1] = config->daemon_v6[1];
			ctx->user_ip6[2] = config->daemon_v6[2];
		}
		ctx->user_ip6[3] = is_mapped ? to_v4 : to_v6;
		ctx->user_port = config->port;
	}
	return result == DENY ? DENY : ALLOW;
}

static __always_inline int is_redirected(struct bpf_sock_addr *ctx)
{
	struct config *config = configuration();
	struct mark *mark = mark_of(ctx->sk);

	return config && mark && mark->state == RECORDED && ctx->user_port == config->port;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	if (is_redirected(ctx)) {
		ctx->user_ip4 = METADATA_V4;
		ctx->user_port = bpf_htons(METADATA_PORT);
	}
	return ALLOW;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	if (is_redirected(ctx)) {
		if (!ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == MAPPED) {
			ctx->user_ip6[3] = METADATA_V4;
		} else {
			ctx->user_ip6[0] = METADATA_V6_0;
			ctx->user_ip6[1] = 0;
			ctx->user_ip6[2] = 0;
			ctx->user_ip6[3] = METADATA_V6_3;
		}
		ctx->user_port = bpf_htons(METADATA_PORT);
	}
	return ALLOW;
}

/* The connection of this socket, as the daemon sees it. */
static __always_inline void connection_of(struct bpf_sock_ops *ctx, struct connection *to)
{
	__u32 local_v4 = READ(ctx->local_ip4), remote_v4 = READ(ctx->remote_ip4);

	/* A field of the context is read where it is used: the verifier allows no pointer to a field. */
	to->client[0] = READ(ctx->local_ip6[0]);
	to->client[1] = READ(ctx->local_ip6[1]);
	to->client[2] = READ(ctx->local_ip6[2]);
	to->client[3] = READ(ctx->local_ip6[3]);
	to->daemon[0] = READ(ctx->remote_ip6[0]);
	to->daemon[1] = READ(ctx->remote_ip6[1]);
	to->daemon[2] = READ(ctx->remote_ip6[2]);
	to->daemon[3] = READ(ctx->remote_ip6[3]);
	if (ctx->family == AF_INET || (!to->daemon[0] && !to->daemon[1] && to->daemon[2] == MAPPED)) {
		to->client[0] = to->client[1] = to->daemon[0] = to->daemon[1] = 0;
		to->client[2] = to->daemon[2] = MAPPED;
		to->client[3] = local_v4;
		to->daemon[3] = remote_v4;
	}
	to->client_port = ctx->local_port;
	to->daemon_port = bpf_ntohl(ctx->remote_port);
}

/* Follows the state of a connection, whatever other programs want to follow. */
static __always_inline void follow(struct bpf_sock_ops *ctx)
{
	int flags = ctx->bpf_sock_ops_cb_flags;

	if (!(flags & BPF_SOCK_OPS_STATE_CB_FLAG))
		bpf_sock_ops_cb_flags_set(ctx, flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Whether this is a connection to the daemon's own address and port. */
static __always_inline int is_to_daemon(const struct config *config, const struct connection *connection)
{
	const __u32 *to = connection->daemon;

	if (connection->daemon_port != bpf_ntohs(config->port))
		return 0;
	if (!to[0] && !to[1] && to[2] == MAPPED)
		return config->daemon_v4 && to[3] == config->daemon_v4;
	return to[0] == config->daemon_v6[0] && to[1] == config->daemon_v6[1] && to[2] == config->daemon_v6[2] &&
	       to[3] == config->daemon_v6[3];
}

/*
 * Records the connection. In the node's network, only this socket can have these addresses. Elsewhere, another network may have the same
 * ones: the last record is the one that counts, and that of an established connection is written again before the daemon accepts it.
 */
static __always_inline int record_as(struct bpf_sock_ops *ctx, const struct connection *connection, const struct mark *mark)
{
	struct record record = {};

	record.pod = mark->pod;
	record.cgroup = mark->cgroup;
	record.socket = bpf_get_socket_cookie(ctx);
	record.to_v6 = mark->to_v6;
	return !bpf_map_update_elem(&connections, connection, &record, BPF_ANY);
}

static __always_inline void connects(struct bpf_sock_ops *ctx, struct mark *mark, const struct config *config,
				     struct connection *connection)
{
	__u32 *count, none = 0;
	__u64 pod = mark->pod;

	if (!config || !is_to_daemon(config, connection)) {
		mark->state = MISDIRECTED;
		return;
	}
	/* A failed attempt of this socket may have left it. */
	count = bpf_map_lookup_elem(&open, &pod);
	if (!count) {
		bpf_map_update_elem(&open, &pod, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&open, &pod);
	}
	if (!count || (!mark->counted && *count >= MAX_OF_POD))
		return;
	if (!mark->counted)
		__sync_fetch_and_add(count, 1);
	mark->counted = 1;
	connection->in_host_network = mark->in_host_network;
	if (!record_as(ctx, connection, mark)) {
		/* The daemon refuses it. */
		mark->counted = 0;
		mark->state = NOT_REDIRECTED;
		__sync_fetch_and_add(count, -1);
		return;
	}
	mark->state = RECORDED;
	follow(ctx);
}

/* A socket in the node's network connects to the daemon itself. A record with its addresses is one whose end nobody noticed. */
static __always_inline void connects_directly(struct bpf_sock_ops *ctx, const struct config *config, struct connection *connection)
{
	if (!config || !is_to_daemon(config, connection) || !is_host_network(config, ctx))
		return;
	connection->in_host_network = 1;
	bpf_map_delete_elem(&connections, connection);
}

static __always_inline void establishes(struct bpf_sock_ops *ctx, struct mark *mark)
{
	struct connection connection = {};
	struct record *record;

	connection_of(ctx, &connection);
	connection.in_host_network = mark->in_host_network;
	record = bpf_map_lookup_elem(&connections, &connection);
	if (!record || record->socket != bpf_get_socket_cookie(ctx))
		record_as(ctx, &connection, mark);
	follow(ctx);
}

static __always_inline void closes(struct bpf_sock_ops *ctx, struct mark *mark)
{
	struct connection connection = {};
	struct record *record;
	__u64 pod = mark->pod;
	__u32 *count;

	if (mark->counted) {
		mark->counted = 0;
		count = bpf_map_lookup_elem(&open, &pod);
		if (count && *count)
			__sync_fetch_and_add(count, -1);
	}
	if (mark->state != RECORDED)
		return;
	mark->state = NOT_REDIRECTED;
	connection_of(ctx, &connection);
	connection.in_host_network = mark->in_host_network;
	record = bpf_map_lookup_elem(&connections, &connection);
	if (record && record->socket == bpf_get_socket_cookie(ctx))
		bpf_map_delete_elem(&connections, &connection);
}

SEC("sockops")
int record_connection(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;
	struct mark *mark;

	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	mark = mark_of(ctx->sk);
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		struct config *config = configuration();
		struct connection connection = {};

		connection_of(ctx, &connection);
		if (mark && mark->state == CONNECTING)
			connects(ctx, mark, config, &connection);
		else if (!mark || mark->state == NOT_REDIRECTED)
			connects_directly(ctx, config, &connection);
		return 1;
	}
	if (!mark)
		return 1;
	if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && mark->state == RECORDED)
		establishes(ctx, mark);
	else if (op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE)
		closes(ctx, mark);
	return 1;
}

/* Whether a header of IP goes to the metadata address. */
static __always_inline int goes_to_metadata(struct __sk_buff *skb, __u32 offset, int relative)
{
	__u32 address[4];
	__u8 version;

#define LOAD(at, to)                                                                                     \
	(relative ? bpf_skb_load_bytes_relative(skb, offset + (at), &(to), sizeof(to), BPF_HDR_START_NET) \
		  : bpf_skb_load_bytes(skb, offset + (at), &(to), sizeof(to)))
	if (LOAD(0, version))
		return 0;
	if (version >> 4 == 4)
		return !LOAD(16, address[0]) && address[0] == METADATA_V4;
	if (version >> 4 == 6)
		return !LOAD(24, address) && address[0] == METADATA_V6_0 && !address[1] && !address[2] &&
		       address[3] == METADATA_V6_3;
	return 0;
#undef LOAD
}

/* Whether a packet of a socket in the pods' control group may pass: only one in the node's own network may send it. */
static __always_inline int may_pass(const struct config *config, struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct mark *mark = mark_of(sk);

	if (!mark || !mark->in_host_network)
		return 0;
	return (config->flags & PASS_HOST_NETWORK) || is_in(&exempt, bpf_skb_ancestor_cgroup_id(skb, config->level + 1)) ||
	       is_in(&exempt, bpf_skb_ancestor_cgroup_id(skb, config->level + 2));
}

static __always_inline struct bpf_sock *socket_of(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	return sk ? bpf_sk_fullsock(sk) : NULL;
}

SEC("cgroup_skb/egress")
int drop_egress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = socket_of(skb);
	struct config *config;
	struct mark *mark;

	if (!goes_to_metadata(skb, 0, 0)) {
		mark = sk && sk->protocol == IPPROTO_TCP ? mark_of(sk) : NULL;
		return mark && mark->state == MISDIRECTED ? DENY : ALLOW;
	}
	config = configuration();
	return config && may_pass(config, skb, sk) ? ALLOW : DENY;
}

/*
 * Packet sockets with PACKET_QDISC_BYPASS and sockets of XDP hand frames to the interface past exit_guard. Only those in the node's network
 * can reach its interfaces.
 */
SEC("cgroup/setsockopt")
int deny_bypass(struct bpf_sockopt *ctx)
{
	struct config *config;

	/* The kernel has copied no more of longer values: it shall take the caller's. */
	if (ctx->optlen > MAX_COPIED)
		ctx->optlen = 0;
	if (ctx->level != SOL_XDP && !(ctx->level == SOL_PACKET && ctx->optname == PACKET_QDISC_BYPASS))
		return ALLOW;
	config = configuration();
	if (!config)
		return DENY;
	if (!is_host_network(config, ctx) || (config->flags & PASS_HOST_NETWORK) || is_current_exempt(config))
		return ALLOW;
	return DENY;
}

/*
 * A packet socket chooses which protocol the kernel believes to be in its frame, so the frame is read as well. What begins with such a
 * header of Ethernet on an interface of another kind is no header of IP.
 */
static __always_inline int is_frame_to_metadata(struct __sk_buff *skb)
{
	__u32 offset = 12;
	__u16 type;
	int tags;

#pragma clang loop unroll(full)
	for (tags = 0; tags <= 2; tags++) {
		if (bpf_skb_load_bytes(skb, offset, &type, sizeof(type)))
			return 0;
		offset += 2;
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			return goes_to_metadata(skb, offset, 0);
		offset += 2;
	}
	return 0;
}

SEC("classifier")
int exit_guard(struct __sk_buff *skb)
{
	struct config *config;
	struct bpf_sock *sk;

	if (!goes_to_metadata(skb, 0, 1) && !is_frame_to_metadata(skb))
		return TC_ACT_UNSPEC;
	config = configuration();
	/* Without a socket, it was forwarded, or is the kernel's own answer. */
	sk = socket_of(skb);
	if (!config || !sk || !bpf_skb_cgroup_id(skb))
		return TC_ACT_SHOT;
	/* The kernel's own answers for connections that are closed, also those of pods. The peer does without. */
	if (sk->type == SOCK_RAW && sk->protocol == IPPROTO_TCP)
		return TC_ACT_SHOT;
	if (bpf_skb_ancestor_cgroup_id(skb, config->level) != config->pods) {
		/*
		 * A packet that was forwarded may still have the socket of a process of the node: one that a container runtime opened
		 * in a pod's network, or that of the tap device of a virtual machine, which is of no IP family.
		 */
		if (skb->ingress_ifindex || (sk->family != AF_INET && sk->family != AF_INET6))
			return TC_ACT_SHOT;
		return TC_ACT_UNSPEC;
	}
	return may_pass(config, skb, sk) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
