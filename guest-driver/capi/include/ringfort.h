/*
 * libringfort: files of a Ringfort volume through memory that is shared with its server, without the kernel.
 *
 * Handles: struct ringfort_volume, ringfort_file and ringfort_directory are made and freed by the functions below alone. Any number of threads
 * may use a volume or a file at the same time; a directory is for one at a time. A volume may be disconnected while files of it are open: the
 * connection ends with the last of them. After fork() they are the parent's.
 *
 * Results: 0 or a count where a function has succeeded, else an error number of Linux, negative (-ENOENT). ringfort_error() then has a sentence about
 * it. Nothing is written to a result that was not reached.
 *
 * Paths: bytes that end with a zero, from the root of the volume, or from `at`, an open directory, where that is not NULL. With `at` and an empty
 * path, `at` itself is meant, a file or a directory. No umask is taken off permissions.
 */
#ifndef RINGFORT_H
#define RINGFORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RINGFORT_VERSION "0.1.0"

struct ringfort_volume;
struct ringfort_file;
struct ringfort_directory;

/* How a volume is connected to; what is 0 is as usual. */
struct ringfort_options {
    uint32_t rings;          /* that threads share: several help those that call without a pause */
    uint32_t call_bytes_max; /* the longest read or write that is one */
    uint32_t busy_poll_us;   /* how long a call looks for its answer before it sleeps */
    uint32_t timeout_ms;     /* a call that takes longer is given up (-ETIMEDOUT); it may be carried out all the same */
};

/* How a path or a call is meant. */
#define RINGFORT_NO_FOLLOW 1u    /* a symbolic link at the end of the path is itself what is meant */
#define RINGFORT_NO_REPLACE 2u   /* rename, set_xattr: -EEXIST where it is there */
#define RINGFORT_EXCHANGE 4u     /* rename: the two change places */
#define RINGFORT_MUST_EXIST 8u   /* set_xattr: -ENODATA where it is not there */
#define RINGFORT_ATTRIBUTES 16u  /* open_directory: entries come with their attributes */

/* Bits of opening. */
#define RINGFORT_READ 1u
#define RINGFORT_WRITE 2u
#define RINGFORT_APPEND 4u       /* every write goes to the end of the file */
#define RINGFORT_CREATE 8u
#define RINGFORT_EXCLUSIVE 16u   /* -EEXIST where it is there */
#define RINGFORT_TRUNCATE 32u
#define RINGFORT_DIRECTORY 64u   /* -ENOTDIR where it is none */
#define RINGFORT_DATA_SYNC 128u  /* every write is durable before it returns: the data */
#define RINGFORT_SYNC 256u       /* every write is durable before it returns: with all attributes */
#define RINGFORT_TEMPORARY 512u  /* a file without a name in the directory that the path leads to; ringfort_link gives it one */
#define RINGFORT_OPEN_NO_FOLLOW 1024u

/* What may be done to a file; 0: whether it is there. */
#define RINGFORT_MAY_EXECUTE 1u
#define RINGFORT_MAY_WRITE 2u
#define RINGFORT_MAY_READ 4u

/* A moment: seconds since 1970, and nanoseconds that are added to them. */
struct ringfort_time {
    int64_t seconds;
    uint32_t nanoseconds;
    uint32_t reserved;
};

struct ringfort_attributes {
    uint64_t node;       /* the inode's number, never used for another */
    uint64_t size_bytes;
    uint64_t sectors;    /* allocated, in units of 512 bytes */
    struct ringfort_time accessed;
    struct ringfort_time modified;
    struct ringfort_time changed;
    uint32_t mode;       /* type and permissions, as st_mode */
    uint32_t link_count;
    uint32_t uid;
    uint32_t gid;
    uint32_t device;     /* of a device node, as Linux encodes it */
    uint32_t reserved;
};

/* Which of a struct ringfort_change counts. */
#define RINGFORT_SET_PERMISSIONS 1u
#define RINGFORT_SET_UID 2u
#define RINGFORT_SET_GID 4u
#define RINGFORT_SET_SIZE 8u
#define RINGFORT_SET_ACCESSED 16u
#define RINGFORT_SET_MODIFIED 32u
#define RINGFORT_SET_ACCESSED_NOW 64u
#define RINGFORT_SET_MODIFIED_NOW 128u

struct ringfort_change {
    uint32_t set;
    uint32_t permissions;
    uint32_t uid;
    uint32_t gid;
    uint64_t size_bytes;
    struct ringfort_time accessed;
    struct ringfort_time modified;
};

struct ringfort_entry {
    uint64_t node;
    uint32_t kind;           /* the type's bits of st_mode */
    uint32_t has_attributes; /* 1 where they were asked for */
    struct ringfort_attributes attributes;
    char name[256];          /* ends with a zero */
};

struct ringfort_statistics {
    uint64_t total_blocks;
    uint64_t free_blocks;
    uint64_t available_blocks; /* for a user who is not root */
    uint64_t total_inodes;
    uint64_t free_inodes;
    uint32_t block_bytes;
    uint32_t name_bytes_max;
};

#define RINGFORT_LOCK_NONE 0u      /* what is held is given up */
#define RINGFORT_LOCK_SHARED 1u
#define RINGFORT_LOCK_EXCLUSIVE 2u
#define RINGFORT_LOCK_WHOLE 1u     /* of the whole file, as flock has them; else of a range, as fcntl has them */
#define RINGFORT_LOCK_WAIT 2u      /* until it is free; else -EAGAIN */
#define RINGFORT_LOCK_OWNER 4u     /* `owner`, a number below 2^63, owns it; else the open file does */

struct ringfort_lock {
    uint64_t start;
    uint64_t end;   /* the last byte, included */
    uint64_t owner;
    uint32_t mode;
    uint32_t flags;
    uint32_t pid;   /* of who is in the way */
    uint32_t reserved;
};

/* What becomes of a range in ringfort_allocate. */
#define RINGFORT_RESERVE 0u
#define RINGFORT_RESERVE_KEEP_SIZE 1u
#define RINGFORT_PUNCH_HOLE 2u
#define RINGFORT_ZERO 3u
#define RINGFORT_ZERO_KEEP_SIZE 4u
#define RINGFORT_COLLAPSE 5u
#define RINGFORT_INSERT 6u

/* As struct iovec. */
struct ringfort_buffer {
    void *bytes;
    size_t len_bytes;
};

/* What a command of ringfort_run does. */
#define RINGFORT_DO_READ 1u
#define RINGFORT_DO_WRITE 2u        /* `result`: how many of the bytes */
#define RINGFORT_DO_APPEND 3u
#define RINGFORT_DO_SYNC 4u
#define RINGFORT_DO_OPEN 5u         /* `file` and `path` as in ringfort_open; commands of its chain may be about what was opened: */
#define RINGFORT_DO_READ_OPENED 6u
#define RINGFORT_DO_WRITE_OPENED 7u
#define RINGFORT_DO_SYNC_OPENED 8u
#define RINGFORT_DO_CLOSE_OPENED 9u /* in the same chain: nobody else can */

/* A chain: the next command begins when this one has succeeded (-ECANCELED where it has not), or has ended, however. */
#define RINGFORT_THEN 1u
#define RINGFORT_THEN_ALWAYS 2u

struct ringfort_command {
    const struct ringfort_file *file;
    const char *path;
    void *buffer;         /* is read or filled, as the command says */
    size_t len_bytes;
    uint64_t offset_bytes;
    uint32_t what;
    uint32_t link;
    uint32_t bits;        /* of opening */
    uint32_t permissions;
    int64_t result;       /* as other functions give it */
};

/* A sentence about the last call of this thread that failed; valid until the next one fails. Never NULL. */
const char *ringfort_error(void);

/* Connects to "unix:PATH"; NULL: to what RINGFORT_CONNECT names, or else the daemon of this guest. */
int ringfort_connect(const char *address, struct ringfort_volume **volume);
/* With settings; NULL: as usual. */
int ringfort_connect_with(const char *address, const struct ringfort_options *options, struct ringfort_volume **volume);
void ringfort_disconnect(struct ringfort_volume *volume);
/* Asks the server for nothing; for measurements. */
int ringfort_nop(const struct ringfort_volume *volume);
/* Everything done to the volume is on stable media. */
int ringfort_sync_all(const struct ringfort_volume *volume);
int ringfort_statistics(const struct ringfort_volume *volume, struct ringfort_statistics *statistics);

int ringfort_open(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t bits, uint32_t permissions, struct ringfort_file **file);
/* Frees the file, also where it fails. What was written is durable only after ringfort_sync. */
int ringfort_close(struct ringfort_file *file);
/* Bytes read: fewer than asked for only at the end of the file. */
int64_t ringfort_read(const struct ringfort_file *file, void *buffer, size_t len_bytes, uint64_t offset_bytes);
/* Writes all of it. */
int64_t ringfort_write(const struct ringfort_file *file, const void *bytes, size_t len_bytes, uint64_t offset_bytes);
/* The same with several buffers, one after the other. What fits one call is read or written as one. */
int64_t ringfort_read_vectored(const struct ringfort_file *file, const struct ringfort_buffer *buffers, size_t buffer_count, uint64_t offset_bytes);
int64_t ringfort_write_vectored(const struct ringfort_file *file, const struct ringfort_buffer *buffers, size_t buffer_count, uint64_t offset_bytes);
int64_t ringfort_append(const struct ringfort_file *file, const void *bytes, size_t len_bytes);
int ringfort_sync(const struct ringfort_file *file);
int ringfort_sync_data(const struct ringfort_file *file);
int ringfort_allocate(const struct ringfort_file *file, uint32_t how, uint64_t offset_bytes, uint64_t len_bytes);
/* Where the next data, or hole, begins from an offset on; -ENXIO where there is none. */
int64_t ringfort_seek_data(const struct ringfort_file *file, uint64_t offset_bytes);
int64_t ringfort_seek_hole(const struct ringfort_file *file, uint64_t offset_bytes);
/* Bytes copied within the volume; 0 at the end. */
int64_t ringfort_copy_range(const struct ringfort_file *from, uint64_t from_bytes, const struct ringfort_file *to, uint64_t to_bytes, uint64_t len_bytes);
int ringfort_lock(const struct ringfort_file *file, const struct ringfort_lock *lock);
/* 1, and the lock, where a range lock of another is in the way; 0 where none is. */
int ringfort_lock_in_the_way(const struct ringfort_file *file, struct ringfort_lock *lock);

int ringfort_stat(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t flags, struct ringfort_attributes *attributes);
/* `after`: the attributes then, or NULL. */
int ringfort_set_attributes(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t flags, const struct ringfort_change *change, struct ringfort_attributes *after);
int ringfort_access(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t flags, uint32_t may);

int ringfort_make_directory(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t permissions);
/* `mode` has type and permissions, as of mknod. */
int ringfort_make_node(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t mode, uint32_t major, uint32_t minor);
int ringfort_symlink(const struct ringfort_volume *volume, const char *target, const struct ringfort_file *at, const char *path);
/* Bytes of the target, of which not more than the buffer holds are written; no zero ends them. */
int64_t ringfort_read_link(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, char *buffer, size_t len_bytes);
int ringfort_link(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *existing, const struct ringfort_file *new_at, const char *new_path, uint32_t flags);
int ringfort_remove_file(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path);
int ringfort_remove_directory(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path);
int ringfort_rename(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, const struct ringfort_file *new_at, const char *new_path, uint32_t flags);

int ringfort_open_directory(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t flags, struct ringfort_directory **directory);
/* 1: the next entry; 0: there are no more. Without "." and "..". */
int ringfort_next_entry(struct ringfort_directory *directory, struct ringfort_entry *entry);
void ringfort_close_directory(struct ringfort_directory *directory);

/* Bytes of the value; with len_bytes 0 nothing else, and -ERANGE where it has more. */
int64_t ringfort_get_xattr(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t flags, const char *name, void *buffer, size_t len_bytes);
int ringfort_set_xattr(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t flags, const char *name, const void *value, size_t len_bytes);
/* Bytes of all names, each ended by a zero; with len_bytes 0 nothing else, and -ERANGE where there are more. */
int64_t ringfort_list_xattrs(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t flags, char *buffer, size_t len_bytes);
int ringfort_remove_xattr(const struct ringfort_volume *volume, const struct ringfort_file *at, const char *path, uint32_t flags, const char *name);

/* Submits all commands at once, which are carried out at the same time and in any order but that of chains, and waits for all. 0 where each has a result. */
int ringfort_run(const struct ringfort_volume *volume, struct ringfort_command *commands, size_t command_count);

#ifdef __cplusplus
}
#endif

#endif
