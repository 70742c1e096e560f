#!/bin/bash
# Locks are taken in the order of the account numbers, checks are made under them, and the total
# takes all of them.
set -eu
cat > /app/bank.c <<'C'
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
    for (int i = 0; i < b->accounts; i++)
        pthread_mutex_destroy(&b->account[i].lock);
    free(b->account);
    free(b);
}

static int exists(bank *b, int account)
{
    return account >= 0 && account < b->accounts;
}

int bank_transfer(bank *b, int from, int to, long amount)
{
    int done = -1;

    if (!exists(b, from) || !exists(b, to) || amount < 0)
        return -1;
    int first = from < to ? from : to;
    int second = from < to ? to : from;
    pthread_mutex_lock(&b->account[first].lock);
    if (second != first)
        pthread_mutex_lock(&b->account[second].lock);
    if (b->account[from].balance >= amount) {
        done = 0;
        if (from != to) {
            b->account[from].balance -= amount;
            if (bank_trace)
                bank_trace(from, to);
            b->account[to].balance += amount;
        }
    }
    if (second != first)
        pthread_mutex_unlock(&b->account[second].lock);
    pthread_mutex_unlock(&b->account[first].lock);
    return done;
}

long bank_balance(bank *b, int account)
{
    if (!exists(b, account))
        return -1;
    pthread_mutex_lock(&b->account[account].lock);
    long balance = b->account[account].balance;
    pthread_mutex_unlock(&b->account[account].lock);
    return balance;
}

long bank_total(bank *b)
{
    long sum = 0;
    for (int i = 0; i < b->accounts; i++)
        pthread_mutex_lock(&b->account[i].lock);
    for (int i = 0; i < b->accounts; i++)
        sum += b->account[i].balance;
    for (int i = b->accounts - 1; i >= 0; i--)
        pthread_mutex_unlock(&b->account[i].lock);
    return sum;
}
C
make -C /app bank_demo
/app/bank_demo
