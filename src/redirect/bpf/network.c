/* SPDX-License-Identifier: Apache-2.0 */
/* Tells the cookie of the network namespace of a socket that sends a message: no system call of a safe crate does. */
#include "kernel.h"

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} cookie SEC(".maps");

SEC("sk_msg")
int tell_network(struct sk_msg_md *message)
{
	__u64 network = bpf_get_netns_cookie(message);
	__u32 key = 0;

	bpf_map_update_elem(&cookie, &key, &network, BPF_ANY);
	return SK_PASS;
}

char _license[] SEC("license") = "GPL";
