/*
 * notes VOLUME-ADDRESS TEXT...: keeps lines in /notes/log of a volume, and shows what is there.
 *
 *     cc notes.c $(pkg-config --cflags --libs ringfort) -o notes
 *     ./notes unix:/run/ringfort/data.ctl "a line"
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <errno.h>
#include <ringfort.h>

/* Every function says how it went in the same way. */
static int64_t must(int64_t result)
{
    if (result < 0) {
        fprintf(stderr, "notes: %s (%s)\n", ringfort_error(), strerror((int)-result));
        exit(2);
    }
    return result;
}

int main(int argc, char **argv)
{
    struct ringfort_volume *volume;
    struct ringfort_directory *directory;
    struct ringfort_entry entry;
    struct ringfort_file *file;
    char buffer[4096];
    int64_t got;
    uint64_t offset = 0;

    if (argc < 3) {
        fprintf(stderr, "notes VOLUME-ADDRESS TEXT...\n");
        return 1;
    }
    must(ringfort_connect(argv[1], &volume));
    int made = ringfort_make_directory(volume, NULL, "/notes", 0755);
    if (made != -EEXIST)
        must(made);
    must(ringfort_open(volume, NULL, "/notes/log", RINGFORT_READ | RINGFORT_WRITE | RINGFORT_CREATE, 0644, &file));
    for (int index = 2; index < argc; index++) {
        snprintf(buffer, sizeof buffer, "%s\n", argv[index]);
        must(ringfort_append(file, buffer, strlen(buffer)));
    }
    must(ringfort_sync(file));
    while ((got = must(ringfort_read(file, buffer, sizeof buffer, offset))) > 0) {
        fwrite(buffer, 1, (size_t)got, stdout);
        offset += (uint64_t)got;
    }
    must(ringfort_close(file));

    must(ringfort_open_directory(volume, NULL, "/notes", RINGFORT_ATTRIBUTES, &directory));
    while (must(ringfort_next_entry(directory, &entry)) == 1)
        printf("%s: %llu bytes\n", entry.name, (unsigned long long)entry.attributes.size_bytes);
    ringfort_close_directory(directory);
    ringfort_disconnect(volume);
    return 0;
}
