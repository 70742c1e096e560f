#include "stats.h"
#include "version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    double values[100];
    int count = 0;

    if (argc == 2 && !strcmp(argv[1], "--version")) {
        printf("stats %s\n", VERSION);
        return 0;
    }
    for (int i = 1; i < argc && count < 100; i++)
        values[count++] = atof(argv[i]);
    if (count == 0) {
        fprintf(stderr, "usage: stats NUMBER...\n");
        return 2;
    }
    printf("mean %.*f\n", DIGITS, mean(values, count));
    printf("deviation %.*f\n", DIGITS, deviation(values, count));
    printf("geometric %.*f\n", DIGITS, geometric_mean(values, count));
    return 0;
}
