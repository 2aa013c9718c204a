#include <stdio.h>
#include <ringfort.h>

int main(void) {
    struct ringfort_volume *volume; struct ringfort_file *file; char text[7] = "";
    if (ringfort_connect(NULL, &volume) < 0) /* RINGFORT_CONNECT, or a guest's daemon */
        return fprintf(stderr, "%s\n", ringfort_error()), 2;
    if (ringfort_open(volume, NULL, "/hello", RINGFORT_READ | RINGFORT_WRITE | RINGFORT_CREATE, 0644, &file) < 0
        || ringfort_write(file, "hello\n", 6, 0) < 0 || ringfort_sync(file) < 0 || ringfort_read(file, text, 6, 0) < 0)
        return fprintf(stderr, "%s\n", ringfort_error()), 2;
    return fputs(text, stdout), ringfort_close(file), ringfort_disconnect(volume), 0;
}
