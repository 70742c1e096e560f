#include "bank.h"

#include <pthread.h>
#include <stdlib.h>

struct account {
    pthread_mutex_t lock;
    long balance;
};

struct bank {
    int accounts;
    struct account *account;
};

void (*bank_trace)(int from, int to);

bank *bank_open(int accounts, long balance)
{
    bank *b = malloc(sizeof *b);
    b->accounts = accounts;
    b->account = calloc(accounts, sizeof *b->account);
    for (int i = 0; i < accounts; i++) {
        pthread_mutex_init(&b->account[i].lock, NULL);
        b->account[i].balance = balance;
    }
    return b;
}

void bank_close(bank *b)
{
    free(b->account);
    free(b);
}

int bank_transfer(bank *b, int from, int to, long amount)
{
    if (b->account[from].balance < amount)
        return -1;
    pthread_mutex_lock(&b->account[from].lock);
    pthread_mutex_lock(&b->account[to].lock);
    b->account[from].balance -= amount;
    if (bank_trace)
        bank_trace(from, to);
    b->account[to].balance += amount;
    pthread_mutex_unlock(&b->account[to].lock);
    pthread_mutex_unlock(&b->account[from].lock);
    return 0;
}

long bank_balance(bank *b, int account)
{
    return b->account[account].balance;
}

long bank_total(bank *b)
{
    long sum = 0;
    for (int i = 0; i < b->accounts; i++)
        sum += b->account[i].balance;
    return sum;
}
