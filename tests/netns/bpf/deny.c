// Attaches a program to a control group that refuses connections of TCP to one port with EPERM, and lets all others pass:
//
//   deny CGROUP connect4|connect6 PORT [preorder]
//
//   deny CGROUP connect4|connect6 PORT divert OTHER-PORT
//
// The latter sends the connections to another port instead. It stands for the programs of others, such as a network plugin's load balancer. With `preorder`, it runs ahead of those of
// descendants. The exit status is the error number, 0 after success.

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

// Newer than Debian 12's headers.
#define PREORDER (1U << 6)

static int fail(const char *what)
{
	int error = errno;

	perror(what);
	return error ? error : EIO;
}

int main(int argc, char **argv)
{
	char log[4096] = "";

	if (argc < 4)
		return EINVAL;
	enum bpf_attach_type type = !strcmp(argv[2], "connect6") ? BPF_CGROUP_INET6_CONNECT : BPF_CGROUP_INET4_CONNECT;
	int diverts = argc > 5 && !strcmp(argv[4], "divert");
	struct bpf_insn program[] = {
		// r2 = address->user_port, which is in network byte order
		{ BPF_LDX | BPF_MEM | BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct bpf_sock_addr, user_port), 0 },
		// r0 = 1: pass
		{ BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 1 },
		// if r2 != PORT, skip the next three instructions
		{ BPF_JMP | BPF_JNE | BPF_K, BPF_REG_2, 0, 3, htons(atoi(argv[3])) },
		// refuse, or pass to the other port
		{ BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, diverts },
		{ BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, htons(atoi(argv[diverts ? 5 : 3])) },
		{ BPF_STX | BPF_MEM | BPF_W, BPF_REG_1, BPF_REG_2, offsetof(struct bpf_sock_addr, user_port), 0 },
		{ BPF_JMP | BPF_EXIT, 0, 0, 0, 0 },
	};
	union bpf_attr load = {
		.prog_type = BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
		.expected_attach_type = type,
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
		.target_fd = group,
		.attach_bpf_fd = loaded,
		.attach_type = type,
		.attach_flags = BPF_F_ALLOW_MULTI | (argc == 5 ? PREORDER : 0),
	};
	if (syscall(__NR_bpf, BPF_PROG_ATTACH, &attach, sizeof(attach)) < 0)
		return fail("attach");
	return 0;
}
