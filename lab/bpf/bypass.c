// SPDX-License-Identifier: Apache-2.0
//! What a network plugin with eBPF host routing does with the packets of a pod: it sends them to the uplink itself, so that they
//! pass no netfilter hook of the node. Attached to the ingress of the node's end of a pod's veth.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>

#define SEC(name) __attribute__((section(name), used))

/// The test replaces this number in the object by the index of the uplink.
#define UPLINK 0x5eed1f5a

/// 169.254.169.254 in network byte order.
#define METADATA_IPV4 __builtin_bswap32(0xa9fea9fe)

static long (*const skb_load_bytes)(const struct __sk_buff *skb, __u32 offset, void *to, __u32 length) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const redirect_neigh)(__u32 interface, void *next_hop, int length, __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

SEC("classifier")
int bypass(struct __sk_buff *skb)
{
	// Where the addresses begin in the headers of IPv4 and IPv6.
	if (skb->protocol == __builtin_bswap16(ETH_P_IP)) {
		__u32 destination;
		if (skb_load_bytes(skb, ETH_HLEN + 16, &destination, sizeof(destination)) || destination != METADATA_IPV4)
			return TC_ACT_OK;
	} else if (skb->protocol == __builtin_bswap16(ETH_P_IPV6)) {
		// fd00:ec2::254
		__u32 destination[4];
		if (skb_load_bytes(skb, ETH_HLEN + 24, destination, sizeof(destination)) ||
		    destination[0] != __builtin_bswap32(0xfd000ec2) || destination[1] || destination[2] ||
		    destination[3] != __builtin_bswap32(0x254))
			return TC_ACT_OK;
	} else {
		return TC_ACT_OK;
	}
	return redirect_neigh(UPLINK, 0, 0, 0);
}

SEC("license") static const char terms[] = "Apache-2.0";
