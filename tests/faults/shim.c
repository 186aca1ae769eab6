/* LD_PRELOAD: makes the N-th I/O call on files under one folder kill the process, fail, or do half of its work.
 *
 * Counted: open, read, write, pwrite, fsync, close, ftruncate, rename, link, unlink, mkdir of paths under the folder, or of
 * descriptors opened there. Armed from Python through ctypes, so that a warm process can fork a child for each point.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_AFTER, TORN, FAIL_ONCE, FAIL_ON, SHORT };
enum { SPACE = 1, ANY = 2 }; /* what a call needs: space on the disk, or only the disk */

static char folder[4096];
static long target, calls;
static int mode, error_number, deny_links, armed;
static char ours[65536];
static char kinds[100000];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void shim_arm(const char *path, long at, int how, int error, int no_links) {
  strncpy(folder, path, sizeof folder - 1);
  target = at;
  mode = how;
  error_number = error;
  deny_links = no_links;
  calls = 0;
  memset(ours, 0, sizeof ours);
  armed = 1;
}
/* Another fault from the at-th call from now on; which descriptors are ours stays known. */
void shim_aim(long at, int how, int error) {
  calls = 0;
  target = at;
  mode = how;
  error_number = error;
}
void shim_disarm(void) { armed = 0; }
long shim_calls(void) { return calls; }
char *shim_kinds(void) { return kinds; }

static int under(const char *path) { return armed && path && strncmp(path, folder, strlen(folder)) == 0; }
static int mine(int fd) { return armed && fd >= 0 && fd < (int)sizeof ours && ours[fd]; }

static void die(void) { kill(getpid(), SIGKILL); pause(); }

/* 1: fail now. Counts the call, and kills before it where asked to. */
static int enter(char kind, int needs) {
  calls++;
  if (calls < (long)sizeof kinds) kinds[calls - 1] = kind;
  if (calls == target && mode == KILL_BEFORE) die();
  int hit = (mode == FAIL_ONCE && calls == target) || (mode == FAIL_ON && calls >= target);
  int disk_full = error_number == ENOSPC || error_number == EDQUOT || error_number == EROFS || error_number == EACCES;
  if (hit && (!disk_full || needs == SPACE)) {
    errno = error_number;
    return 1;
  }
  return 0;
}
static void leave(void) {
  if (calls == target && (mode == KILL_AFTER || mode == TORN)) die();
}

static int opened(int fd, const char *path) {
  if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = under(path);
  leave();
  return fd;
}
#define OPEN(name)                                                          \
  int name(const char *path, int flags, ...) {                              \
    mode_t m = 0;                                                           \
    if (flags & (O_CREAT | O_TMPFILE)) {                                    \
      va_list a;                                                            \
      va_start(a, flags);                                                   \
      m = va_arg(a, mode_t);                                                \
      va_end(a);                                                            \
    }                                                                       \
    if (!under(path)) return REAL(name)(path, flags, m);                    \
    if (enter('o', flags & O_CREAT ? SPACE : ANY)) return -1;               \
    return opened(REAL(name)(path, flags, m), path);                        \
  }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t n) {
  if (!mine(fd)) return REAL(write)(fd, data, n);
  if (enter('w', SPACE)) return -1;
  if (calls == target && (mode == TORN || mode == SHORT) && n > 1) n /= 2;
  ssize_t done = REAL(write)(fd, data, n);
  leave();
  return done;
}
ssize_t pwrite64(int fd, const void *data, size_t n, off_t at) {
  if (!mine(fd)) return REAL(pwrite)(fd, data, n, at);
  if (enter('p', SPACE)) return -1;
  ssize_t done = REAL(pwrite)(fd, data, n, at);
  leave();
  return done;
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return pwrite64(fd, data, n, at); }
ssize_t read(int fd, void *data, size_t n) {
  if (!mine(fd)) return REAL(read)(fd, data, n);
  if (enter('r', ANY)) return -1;
  if (calls == target && mode == SHORT && n > 1) n /= 2;
  ssize_t done = REAL(read)(fd, data, n);
  leave();
  return done;
}
int fsync(int fd) {
  if (!mine(fd)) return REAL(fsync)(fd);
  if (enter('s', SPACE)) return -1;
  int done = REAL(fsync)(fd);
  leave();
  return done;
}
int close(int fd) {
  if (!mine(fd)) return REAL(close)(fd);
  int fails = enter('c', ANY);
  ours[fd] = 0;
  int done = REAL(close)(fd);
  if (fails) {
    errno = error_number;
    return -1;
  }
  leave();
  return done;
}
int ftruncate64(int fd, off_t n) {
  if (!mine(fd)) return REAL(ftruncate)(fd, n);
  if (enter('t', SPACE)) return -1;
  int done = REAL(ftruncate)(fd, n);
  leave();
  return done;
}
int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }
int rename(const char *a, const char *b) {
  if (!under(b)) return REAL(rename)(a, b);
  if (enter('R', SPACE)) return -1;
  int done = REAL(rename)(a, b);
  leave();
  return done;
}
int link(const char *a, const char *b) {
  if (!under(b)) return REAL(link)(a, b);
  if (deny_links) {
    errno = EPERM;
    return -1;
  }
  if (enter('l', SPACE)) return -1;
  int done = REAL(link)(a, b);
  leave();
  return done;
}
int unlink(const char *a) {
  if (!under(a)) return REAL(unlink)(a);
  if (enter('u', ANY)) return -1;
  int done = REAL(unlink)(a);
  leave();
  return done;
}
int mkdir(const char *a, mode_t m) {
  if (!under(a)) return REAL(mkdir)(a, m);
  if (enter('m', SPACE)) return -1;
  int done = REAL(mkdir)(a, m);
  leave();
  return done;
}
