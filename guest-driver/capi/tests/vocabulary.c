/* vocabulary VOLUME-ADDRESS: every function of ringfort.h, in an empty volume. */
#define _XOPEN_SOURCE 700
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <ringfort.h>

#define BLOCK 4096

/* Equal, or both are said. */
#define CHECK(found, expected) check((long long)(found), (long long)(expected), #found, __LINE__)

static int failures;

static void check(long long found, long long expected, const char *what, int line)
{
    if (found != expected) {
        fprintf(stderr, "line %d: %s is %lld, not %lld (%s)\n", line, what, found, expected, ringfort_error());
        failures++;
    }
}

static struct ringfort_file *create(struct ringfort_volume *volume, const char *path)
{
    struct ringfort_file *file = NULL;
    CHECK(ringfort_open(volume, NULL, path, RINGFORT_READ | RINGFORT_WRITE | RINGFORT_CREATE | RINGFORT_EXCLUSIVE, 0640, &file), 0);
    return file;
}

static void contents(struct ringfort_volume *volume)
{
    struct ringfort_file *file = create(volume, "/f"), *again = NULL, *copy;
    struct ringfort_attributes found;
    char buffer[16];

    CHECK(ringfort_write(file, "0123456789", 10, 0), 10);
    CHECK(ringfort_append(file, "ab", 2), 2);
    CHECK(ringfort_read(file, buffer, sizeof buffer, 8), 4);
    CHECK(memcmp(buffer, "89ab", 4), 0);
    CHECK(ringfort_read(file, buffer, sizeof buffer, 100), 0);
    char head[4] = "head", tail[2] = "++", first[3], second[8];
    struct ringfort_buffer out[] = {{head, sizeof head}, {NULL, 0}, {tail, sizeof tail}};
    struct ringfort_buffer in[] = {{first, sizeof first}, {second, sizeof second}};
    CHECK(ringfort_write_vectored(file, out, 3, 12), 6);
    CHECK(ringfort_read_vectored(file, in, 2, 11), 7);
    CHECK(memcmp(first, "bhe", 3) || memcmp(second, "ad++", 4), 0);
    CHECK(ringfort_read_vectored(file, NULL, 1, 0), -EFAULT);
    CHECK(ringfort_set_attributes(volume, file, "", 0, &(struct ringfort_change){.set = RINGFORT_SET_SIZE, .size_bytes = 12}, NULL), 0);
    CHECK(ringfort_sync_data(file), 0);
    CHECK(ringfort_sync(file), 0);
    CHECK(ringfort_sync_all(volume), 0);
    CHECK(ringfort_open(volume, NULL, "/f", RINGFORT_WRITE | RINGFORT_CREATE | RINGFORT_EXCLUSIVE, 0, &again), -EEXIST);
    CHECK(ringfort_open(volume, NULL, "/f", 0, 0, &again), -EINVAL);
    CHECK(again == NULL, 1);
    CHECK(ringfort_open(volume, NULL, "/f", RINGFORT_WRITE | RINGFORT_TRUNCATE | RINGFORT_DATA_SYNC, 0, &again), 0);
    CHECK(ringfort_read(again, buffer, 1, 0), -EBADF);
    CHECK(ringfort_stat(volume, again, "", 0, &found), 0);
    CHECK(found.size_bytes, 0);
    CHECK(found.mode, S_IFREG | 0640);
    CHECK(ringfort_close(again), 0);

    for (int block = 0; block < 4; block++) {
        char bytes[BLOCK];
        memset(bytes, 1 + block, BLOCK);
        CHECK(ringfort_write(file, bytes, BLOCK, (uint64_t)block * BLOCK), BLOCK);
    }
    CHECK(ringfort_allocate(file, RINGFORT_PUNCH_HOLE, BLOCK, BLOCK), 0);
    CHECK(ringfort_seek_hole(file, 0), BLOCK);
    CHECK(ringfort_seek_data(file, BLOCK), 2 * BLOCK);
    CHECK(ringfort_seek_data(file, 4 * BLOCK), -ENXIO);
    CHECK(ringfort_allocate(file, RINGFORT_COLLAPSE, BLOCK, BLOCK), 0);
    CHECK(ringfort_allocate(file, RINGFORT_INSERT, 0, BLOCK), 0);
    CHECK(ringfort_allocate(file, RINGFORT_ZERO_KEEP_SIZE, 0, 9 * BLOCK), 0);
    CHECK(ringfort_allocate(file, 77, 0, BLOCK), -EINVAL);
    CHECK(ringfort_allocate(file, RINGFORT_RESERVE, UINT64_MAX, 2), -EFBIG);
    CHECK(ringfort_write(file, "copied", 6, 0), 6);
    copy = create(volume, "/copy");
    CHECK(ringfort_copy_range(file, 0, copy, 2, 6), 6);
    CHECK(ringfort_read(copy, buffer, sizeof buffer, 0), 8);
    CHECK(memcmp(buffer, "\0\0copied", 8), 0);
    CHECK(ringfort_close(copy), 0);
    CHECK(ringfort_close(file), 0);
}

static void names(struct ringfort_volume *volume)
{
    struct ringfort_file *directory = NULL, *file = NULL;
    struct ringfort_directory *list = NULL;
    struct ringfort_attributes found;
    struct ringfort_entry entry;
    char buffer[8];
    int count = 0;

    CHECK(ringfort_make_directory(volume, NULL, "/d", 0755), 0);
    CHECK(ringfort_open(volume, NULL, "/d", RINGFORT_READ | RINGFORT_DIRECTORY, 0, &directory), 0);
    CHECK(ringfort_make_node(volume, directory, "fifo", S_IFIFO | 0600, 0, 0), 0);
    CHECK(ringfort_make_node(volume, directory, "bad", S_IFDIR | 0600, 0, 0), -EINVAL);
    CHECK(ringfort_symlink(volume, "fifo", directory, "link"), 0);
    CHECK(ringfort_read_link(volume, directory, "link", buffer, 2), 4);
    CHECK(memcmp(buffer, "fi", 2), 0);
    CHECK(ringfort_stat(volume, NULL, "/d/link", 0, &found), 0);
    CHECK(found.mode, S_IFIFO | 0600);
    CHECK(ringfort_stat(volume, NULL, "/d/link", RINGFORT_NO_FOLLOW, &found), 0);
    CHECK(found.mode & S_IFMT, S_IFLNK);
    CHECK(ringfort_open(volume, NULL, "/d/link", RINGFORT_READ | RINGFORT_OPEN_NO_FOLLOW, 0, &file), -ELOOP);
    CHECK(ringfort_link(volume, directory, "fifo", NULL, "/other", 0), 0);
    CHECK(ringfort_rename(volume, NULL, "/other", directory, "fifo", RINGFORT_NO_REPLACE), -EEXIST);
    CHECK(ringfort_rename(volume, NULL, "/other", directory, "moved", 0), 0);
    CHECK(ringfort_rename(volume, directory, "moved", directory, "link", RINGFORT_EXCHANGE), 0);
    CHECK(ringfort_open(volume, directory, ".", RINGFORT_READ | RINGFORT_WRITE | RINGFORT_TEMPORARY, 0600, &file), 0);
    CHECK(ringfort_link(volume, file, "", directory, "named", 0), 0);
    CHECK(ringfort_close(file), 0);

    CHECK(ringfort_open_directory(volume, NULL, "/d", RINGFORT_ATTRIBUTES, &list), 0);
    while (ringfort_next_entry(list, &entry) == 1) {
        CHECK(entry.has_attributes, 1);
        CHECK(entry.attributes.mode & S_IFMT, entry.kind);
        count++;
    }
    CHECK(count, 4);
    ringfort_close_directory(list);
    CHECK(ringfort_remove_directory(volume, NULL, "/d"), -ENOTEMPTY);
    CHECK(ringfort_remove_file(volume, directory, "fifo"), 0);
    CHECK(ringfort_remove_file(volume, directory, "link"), 0);
    CHECK(ringfort_remove_file(volume, directory, "moved"), 0);
    CHECK(ringfort_remove_file(volume, directory, "named"), 0);
    CHECK(ringfort_close(directory), 0);
    CHECK(ringfort_remove_directory(volume, NULL, "/d"), 0);
}

static void attributes(struct ringfort_volume *volume)
{
    struct ringfort_change change = {.set = RINGFORT_SET_PERMISSIONS | RINGFORT_SET_SIZE | RINGFORT_SET_MODIFIED, .permissions = 0400, .size_bytes = 5, .modified = {.seconds = -7, .nanoseconds = 8}};
    struct ringfort_attributes after;
    struct ringfort_statistics statistics;
    struct ringfort_file *file = create(volume, "/a");
    char buffer[64];

    CHECK(ringfort_set_attributes(volume, NULL, "/a", 0, &change, &after), 0);
    CHECK(after.mode, S_IFREG | 0400);
    CHECK(after.size_bytes, 5);
    CHECK(after.modified.seconds, -7);
    CHECK(after.modified.nanoseconds, 8);
    change.set = RINGFORT_SET_MODIFIED | RINGFORT_SET_MODIFIED_NOW;
    CHECK(ringfort_set_attributes(volume, file, "", 0, &change, NULL), -EINVAL);
    change.set = 1u << 31;
    CHECK(ringfort_set_attributes(volume, file, "", 0, &change, NULL), -EINVAL);
    CHECK(ringfort_access(volume, NULL, "/a", 0, RINGFORT_MAY_READ), 0);
    CHECK(ringfort_access(volume, NULL, "/a", 0, RINGFORT_MAY_EXECUTE), -EACCES);
    CHECK(ringfort_access(volume, NULL, "/none", 0, 0), -ENOENT);
    CHECK(ringfort_set_xattr(volume, file, "", RINGFORT_NO_REPLACE, "user.a", "value", 5), 0);
    CHECK(ringfort_set_xattr(volume, file, "", RINGFORT_NO_REPLACE, "user.a", "value", 5), -EEXIST);
    CHECK(ringfort_get_xattr(volume, NULL, "/a", 0, "user.a", NULL, 0), 5);
    CHECK(ringfort_get_xattr(volume, NULL, "/a", 0, "user.a", buffer, 4), -ERANGE);
    CHECK(ringfort_get_xattr(volume, NULL, "/a", 0, "user.a", buffer, sizeof buffer), 5);
    CHECK(memcmp(buffer, "value", 5), 0);
    CHECK(ringfort_list_xattrs(volume, NULL, "/a", 0, buffer, sizeof buffer), 7);
    CHECK(memcmp(buffer, "user.a", 7), 0);
    CHECK(ringfort_remove_xattr(volume, NULL, "/a", 0, "user.a"), 0);
    CHECK(ringfort_get_xattr(volume, NULL, "/a", 0, "user.a", NULL, 0), -ENODATA);
    CHECK(ringfort_statistics(volume, &statistics), 0);
    CHECK(statistics.total_blocks > 0 && statistics.name_bytes_max == 255, 1);
    CHECK(ringfort_nop(volume), 0);
    CHECK(ringfort_close(file), 0);
}

static void locks(struct ringfort_volume *volume)
{
    struct ringfort_file *first = create(volume, "/locked"), *second = NULL;
    struct ringfort_lock range = {.start = 10, .end = 19, .mode = RINGFORT_LOCK_EXCLUSIVE};
    struct ringfort_lock whole = {.mode = RINGFORT_LOCK_SHARED, .flags = RINGFORT_LOCK_WHOLE | RINGFORT_LOCK_WAIT};

    CHECK(ringfort_open(volume, NULL, "/locked", RINGFORT_READ | RINGFORT_WRITE, 0, &second), 0);
    CHECK(ringfort_lock(first, &whole), 0);
    CHECK(ringfort_lock(second, &whole), 0);
    CHECK(ringfort_lock(first, &range), 0);
    CHECK(ringfort_lock(second, &range), -EAGAIN);
    struct ringfort_lock asked = {.start = 0, .end = 100, .mode = RINGFORT_LOCK_SHARED};
    CHECK(ringfort_lock_in_the_way(second, &asked), 1);
    CHECK(asked.start, 10);
    CHECK(asked.end, 19);
    CHECK(asked.mode, RINGFORT_LOCK_EXCLUSIVE);
    range.mode = RINGFORT_LOCK_NONE;
    CHECK(ringfort_lock(first, &range), 0);
    asked = (struct ringfort_lock){.start = 0, .end = 100, .mode = RINGFORT_LOCK_SHARED};
    CHECK(ringfort_lock_in_the_way(second, &asked), 0);
    asked.flags = RINGFORT_LOCK_OWNER;
    asked.owner = 3;
    CHECK(ringfort_lock(first, &asked), 0);
    asked.mode = 9;
    CHECK(ringfort_lock(first, &asked), -EINVAL);
    CHECK(ringfort_close(first), 0);
    CHECK(ringfort_close(second), 0);
}

static void batches(struct ringfort_volume *volume)
{
    struct ringfort_file *file = create(volume, "/batch");
    char one[] = "one", two[] = "two", back[8] = "", chained[8] = "";
    struct ringfort_command writes[] = {
        {.what = RINGFORT_DO_WRITE, .file = file, .buffer = one, .len_bytes = 3},
        {.what = RINGFORT_DO_WRITE, .file = file, .buffer = two, .len_bytes = 3, .offset_bytes = 3},
    };
    struct ringfort_command chain[] = {
        {.what = RINGFORT_DO_OPEN, .path = "/batch", .bits = RINGFORT_READ, .link = RINGFORT_THEN},
        {.what = RINGFORT_DO_READ_OPENED, .buffer = chained, .len_bytes = sizeof chained, .link = RINGFORT_THEN_ALWAYS},
        {.what = RINGFORT_DO_CLOSE_OPENED},
        {.what = RINGFORT_DO_READ, .file = file, .buffer = back, .len_bytes = 4, .offset_bytes = 1},
    };
    struct ringfort_command broken[] = {
        {.what = RINGFORT_DO_OPEN, .path = "/none", .bits = RINGFORT_READ, .link = RINGFORT_THEN},
        {.what = RINGFORT_DO_READ_OPENED, .buffer = back, .len_bytes = sizeof back},
    };
    struct ringfort_command wrong = {.what = 99, .file = file};

    CHECK(ringfort_run(volume, writes, 2), 0);
    CHECK(writes[0].result, 3);
    CHECK(writes[1].result, 3);
    CHECK(ringfort_run(volume, chain, 4), 0);
    CHECK(chain[0].result > 0, 1);
    CHECK(chain[1].result, 6);
    CHECK(memcmp(chained, "onetwo", 6), 0);
    CHECK(chain[2].result, 0);
    CHECK(chain[3].result, 4);
    CHECK(memcmp(back, "netw", 4), 0);
    CHECK(ringfort_run(volume, broken, 2), 0);
    CHECK(broken[0].result, -ENOENT);
    CHECK(broken[1].result, -ECANCELED);
    CHECK(ringfort_run(volume, &wrong, 1), -EINVAL);
    CHECK(ringfort_run(volume, NULL, 1), -EFAULT);
    CHECK(ringfort_run(volume, NULL, 0), 0);
    CHECK(ringfort_close(file), 0);
}

static void mistakes(struct ringfort_volume *volume)
{
    struct ringfort_volume *none = NULL;
    struct ringfort_attributes found;
    struct ringfort_file *file = NULL;

    CHECK(ringfort_connect("somewhere", &none), -EINVAL);
    CHECK(ringfort_connect("unix:/no/such/socket", &none), -ENOENT);
    CHECK(strstr(ringfort_error(), "ringfort serve") != NULL, 1);
    CHECK(ringfort_connect("unix:/no/such/socket", NULL), -EFAULT);
    CHECK(ringfort_stat(NULL, NULL, "/", 0, &found), -EFAULT);
    CHECK(ringfort_stat(volume, NULL, NULL, 0, &found), -EFAULT);
    CHECK(strcmp(ringfort_error(), "the path is NULL"), 0);
    CHECK(ringfort_stat(volume, NULL, "/", 1u << 30, &found), -EINVAL);
    CHECK(ringfort_open(volume, NULL, "/none", RINGFORT_READ, 0, &file), -ENOENT);
    CHECK(strstr(ringfort_error(), "open /none") != NULL, 1);
    CHECK(ringfort_close(NULL), -EFAULT);
    ringfort_disconnect(NULL);
    ringfort_close_directory(NULL);
    file = create(volume, "/bytes");
    CHECK(ringfort_write(file, NULL, 1, 0), -EFAULT);
    CHECK(ringfort_write(file, NULL, 0, 0), 0);
    CHECK(ringfort_read(file, NULL, 1, 0), -EFAULT);
    CHECK(ringfort_close(file), 0);
}

static void *other_thread(void *volume)
{
    struct ringfort_attributes found;
    CHECK(strcmp(ringfort_error(), ""), 0);
    CHECK(ringfort_stat(volume, NULL, "/other", 0, &found), -ENOENT);
    return NULL;
}

static void threads(struct ringfort_volume *volume)
{
    struct ringfort_attributes found;
    pthread_t thread;
    CHECK(ringfort_stat(volume, NULL, "/own", 0, &found), -ENOENT);
    CHECK(pthread_create(&thread, NULL, other_thread, volume), 0);
    CHECK(pthread_join(thread, NULL), 0);
    CHECK(strstr(ringfort_error(), "/own") != NULL, 1);
}

int main(int argc, char **argv)
{
    struct ringfort_volume *volume = NULL;
    struct ringfort_file *last;
    char byte;

    assert(argc == 2);
    struct ringfort_options options = {.rings = 1, .call_bytes_max = 1 << 16, .timeout_ms = 60000};
    CHECK(ringfort_connect_with(argv[1], &options, &volume), 0);
    if (volume != NULL)
        CHECK(ringfort_nop(volume), 0);
    ringfort_disconnect(volume);
    volume = NULL;
    CHECK(ringfort_connect(argv[1], &volume), 0);
    if (volume == NULL)
        return 1;
    mistakes(volume);
    contents(volume);
    names(volume);
    attributes(volume);
    locks(volume);
    batches(volume);
    threads(volume);
    /* A file outlives its volume's handle. */
    last = create(volume, "/last");
    ringfort_disconnect(volume);
    CHECK(ringfort_write(last, "x", 1, 0), 1);
    CHECK(ringfort_read(last, &byte, 1, 0), 1);
    CHECK(ringfort_close(last), 0);
    printf("%s\n", failures ? "failed" : "all well");
    return failures != 0;
}
