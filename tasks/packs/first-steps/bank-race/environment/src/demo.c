#include "bank.h"

#include <pthread.h>
#include <stdio.h>

static bank *b;

static void *work(void *arg)
{
    unsigned seed = (unsigned)(long)arg;
    for (int i = 0; i < 200000; i++) {
        seed = seed * 1103515245u + 12345u;
        bank_transfer(b, (seed >> 8) % 10, (seed >> 16) % 10, seed % 50);
    }
    return NULL;
}

int main(void)
{
    pthread_t thread[4];
    b = bank_open(10, 1000);
    for (long i = 0; i < 4; i++)
        pthread_create(&thread[i], NULL, work, (void *)(i + 1));
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    printf("total %ld, expected 10000\n", bank_total(b));
    bank_close(b);
    return 0;
}
