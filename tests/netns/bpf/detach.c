/* Detaches the BPF link that is pinned at the path given, and leaves its pin in place. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BPF_OBJ_GET 7
#define BPF_LINK_DETACH 34

/* The parts of `union bpf_attr` (linux/bpf.h) that these commands use. */
struct object {
	unsigned long long path;
	unsigned int fd;
	unsigned int flags;
};

struct link {
	unsigned int fd;
};

int main(int count, char **arguments)
{
	struct object object;
	struct link link;
	long fd;

	if (count != 2)
		return 2;
	memset(&object, 0, sizeof(object));
	object.path = (unsigned long)arguments[1];
	fd = syscall(SYS_bpf, BPF_OBJ_GET, &object, sizeof(object));
	link.fd = (unsigned int)fd;
	if (fd < 0 || syscall(SYS_bpf, BPF_LINK_DETACH, &link, sizeof(link))) {
		fprintf(stderr, "%s: %s\n", arguments[1], strerror(errno));
		return 1;
	}
	return 0;
}
