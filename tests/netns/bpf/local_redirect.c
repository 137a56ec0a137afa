// Attaches a program to a control group that sends connections of TCP to 169.254.169.254:80 to another IPv4 address and port:
//
//   local_redirect CGROUP ADDRESS PORT
//
// This is what Cilium's socket load balancer does for a CiliumLocalRedirectPolicy with a backend. Prints a line once the program is
// attached, and ends at the end of its standard input, which detaches the program. This is what happens when the policy has no backend.

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *what)
{
	int error = errno;

	perror(what);
	return error ? error : EIO;
}

int main(int argc, char **argv)
{
	char log[4096] = "";

	if (argc != 4)
		return EINVAL;
	// All numbers are in network byte order.
	struct bpf_insn program[] = {
		// r0 = 1: pass
		{ BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 1 },
		// if address->user_ip4 != 169.254.169.254 or address->user_port != 80, go to the end
		{ BPF_LDX | BPF_MEM | BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct bpf_sock_addr, user_ip4), 0 },
		{ BPF_JMP32 | BPF_JNE | BPF_K, BPF_REG_2, 0, 6, inet_addr("169.254.169.254") },
		{ BPF_LDX | BPF_MEM | BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct bpf_sock_addr, user_port), 0 },
		{ BPF_JMP32 | BPF_JNE | BPF_K, BPF_REG_2, 0, 4, htons(80) },
		{ BPF_ALU | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, inet_addr(argv[2]) },
		{ BPF_STX | BPF_MEM | BPF_W, BPF_REG_1, BPF_REG_2, offsetof(struct bpf_sock_addr, user_ip4), 0 },
		{ BPF_ALU | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, htons(atoi(argv[3])) },
		{ BPF_STX | BPF_MEM | BPF_W, BPF_REG_1, BPF_REG_2, offsetof(struct bpf_sock_addr, user_port), 0 },
		{ BPF_JMP | BPF_EXIT, 0, 0, 0, 0 },
	};
	union bpf_attr load = {
		.prog_type = BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
		.expected_attach_type = BPF_CGROUP_INET4_CONNECT,
		.insn_cnt = sizeof(program) / sizeof(program[0]),
		.insns = (__u64)program,
		.license = (__u64) "Apache-2.0",
		.log_buf = (__u64)log,
		.log_size = sizeof(log),
		.log_level = 1,
	};
	int loaded = syscall(__NR_bpf, BPF_PROG_LOAD, &load, sizeof(load));
	if (loaded < 0) {
		fprintf(stderr, "%s\n", log);
		return fail("load");
	}
	int group = open(argv[1], O_RDONLY | O_DIRECTORY);
	if (group < 0)
		return fail(argv[1]);
	union bpf_attr attach = {
		.link_create = { .prog_fd = loaded, .target_fd = group, .attach_type = BPF_CGROUP_INET4_CONNECT },
	};
	if (syscall(__NR_bpf, BPF_LINK_CREATE, &attach, sizeof(attach)) < 0)
		return fail("attach");
	puts("attached");
	fflush(stdout);
	while (read(STDIN_FILENO, log, sizeof(log)) > 0)
		;
	return 0;
}
