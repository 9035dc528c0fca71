/*
 * Lets user-mode Linux run on processors with more registers than it knows (AMX: 11 KiB of them).
 *
 * It reads as many bytes of a process's registers as it has room for, which the kernel allows, and writes as many back, which the
 * kernel refuses (EFAULT): it wants all. So what is missing is added as it is. Loaded in front of the C library by `boot`.
 * One thread of it calls this, so one buffer is enough.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

static char whole[1 << 16] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
    static long (*real)(enum __ptrace_request, pid_t, void *, void *);
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *where = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (!real)
        real = (long (*)(enum __ptrace_request, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && (long)where == NT_X86_XSTATE) {
        const struct iovec *given = data;
        struct iovec all = { whole, sizeof whole };
        if (real(PTRACE_GETREGSET, pid, where, &all) < 0)
            return -1;
        memcpy(whole, given->iov_base, given->iov_len < all.iov_len ? given->iov_len : all.iov_len);
        return real(request, pid, where, &all);
    }
    return real(request, pid, where, data);
}
