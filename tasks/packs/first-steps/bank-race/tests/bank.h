/* Accounts that many threads move money between. This header is fixed. */
#ifndef BANK_H
#define BANK_H

typedef struct bank bank;

/* If set, bank_transfer calls this once for each transfer between two different accounts that goes
   through: after the money has left `from` and before it has arrived at `to`. It may take long. */
extern void (*bank_trace)(int from, int to);

/* A bank with accounts 0 to accounts-1, each holding `balance`. */
bank *bank_open(int accounts, long balance);
void bank_close(bank *b);

/* Moves `amount` and returns 0. Returns -1 and changes nothing if an account does not exist, if
   `amount` is negative, or if `from` holds less than `amount`. `from` and `to` may be the same
   account: then the same checks apply and nothing changes. */
int bank_transfer(bank *b, int from, int to, long amount);

/* What an account holds; -1 if it does not exist. */
long bank_balance(bank *b, int account);

/* The money in all accounts at one moment: never counts an amount twice or misses one that is on its
   way, so it is the same number as long as the bank lives. */
long bank_total(bank *b);

#endif
