// Connects the TCP socket on standard input with io_uring: uring MODE IP PORT
//
//   inline   in the system call
//   worker   by a worker thread of the kernel
//   poller   by the thread of the kernel that polls the queue
//
// The exit status is the error number, 0 after success.

#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
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
	struct sockaddr_in ipv4 = { .sin_family = AF_INET };
	struct sockaddr_in6 ipv6 = { .sin6_family = AF_INET6 };
	struct io_uring_params params;

	if (argc != 4)
		return EINVAL;
	int is_ipv4 = inet_pton(AF_INET, argv[2], &ipv4.sin_addr) == 1;
	if (!is_ipv4 && inet_pton(AF_INET6, argv[2], &ipv6.sin6_addr) != 1)
		return EINVAL;
	ipv4.sin_port = ipv6.sin6_port = htons(atoi(argv[3]));

	memset(&params, 0, sizeof(params));
	if (!strcmp(argv[1], "poller")) {
		params.flags = IORING_SETUP_SQPOLL;
		params.sq_thread_idle = 1000;
	}
	int ring = syscall(__NR_io_uring_setup, 4, &params);
	if (ring < 0)
		return fail("io_uring_setup");

	char *submissions = mmap(0, params.sq_off.array + params.sq_entries * sizeof(__u32), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	char *completions = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *entries = mmap(0, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
					    MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	if (submissions == MAP_FAILED || completions == MAP_FAILED || entries == MAP_FAILED)
		return fail("mmap");

	memset(&entries[0], 0, sizeof(entries[0]));
	entries[0].opcode = IORING_OP_CONNECT;
	entries[0].fd = STDIN_FILENO;
	entries[0].addr = is_ipv4 ? (__u64)&ipv4 : (__u64)&ipv6;
	entries[0].off = is_ipv4 ? sizeof(ipv4) : sizeof(ipv6);
	if (!strcmp(argv[1], "worker"))
		entries[0].flags = IOSQE_ASYNC;
	((__u32 *)(submissions + params.sq_off.array))[0] = 0;
	__atomic_store_n((__u32 *)(submissions + params.sq_off.tail), 1, __ATOMIC_RELEASE);

	// The thread that polls may have fallen asleep.
	int is_polled = params.flags & IORING_SETUP_SQPOLL;
	unsigned int flags = IORING_ENTER_GETEVENTS | (is_polled ? IORING_ENTER_SQ_WAKEUP : 0);
	__sync_synchronize();
	if (syscall(__NR_io_uring_enter, ring, is_polled ? 0 : 1, 1, flags, 0, 0) < 0)
		return fail("io_uring_enter");
	if (__atomic_load_n((__u32 *)(completions + params.cq_off.tail), __ATOMIC_ACQUIRE) == 0)
		return fail("no completion");
	return -((struct io_uring_cqe *)(completions + params.cq_off.cqes))->res;
}
