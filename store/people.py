"""The `partners` and `users` collections."""

from __future__ import annotations

from domain.people import Membership, Partner, User
from store.database import Database, Session
from store.documents import from_document, to_document


class PartnerRepository:
    """Reads and writes partners."""

    def __init__(self, database: Database) -> None:
        self._partners = database.collection("partners")

    async def by_slug(self, slug: str) -> Partner | None:
        """Return a partner, None if there is none."""
        return from_document(Partner, await self._partners.find_one({"slug": slug}))

    async def get(self, partner_id: str) -> Partner | None:
        """Return a partner, None if there is none."""
        return from_document(Partner, await self._partners.find_one({"_id": partner_id}))

    async def lock(self, partner_id: str, session: Session) -> Partner | None:
        """Return a partner after touching it, so that of two racing transactions one has to start over.

        Counting its tenants alone would let both through.
        """
        found = await self._partners.find_one_and_update(
            {"_id": partner_id}, {"$inc": {"guard": 1}}, session=session, return_document=True
        )
        return from_document(Partner, found)

    async def seed(self, partner: Partner) -> None:
        """Insert a partner unless its slug exists; what people edited since stays."""
        document = to_document(partner)
        await self._partners.update_one({"slug": partner.slug}, {"$setOnInsert": document}, upsert=True)


class UserRepository:
    """Reads and writes users."""

    def __init__(self, database: Database) -> None:
        self._users = database.collection("users")

    async def get(self, user_id: str) -> User | None:
        """Return a user, None if there is none."""
        return from_document(User, await self._users.find_one({"_id": user_id}))

    async def by_subject(self, subject: str) -> User | None:
        """Return the user that Authentik knows by this subject, None if nobody is linked to it."""
        return from_document(User, await self._users.find_one({"subject": subject}))

    async def by_email(self, email: str, session: Session | None = None) -> User | None:
        """Return the user with a normalised address, None if there is none."""
        return from_document(User, await self._users.find_one({"email": email}, session=session))

    async def staff_of(self, partner_id: str) -> User | None:
        """Return the first active staff member of a partner."""
        found = await self._users.find_one({"partnerId": partner_id, "active": True}, sort=[("_id", 1)])
        return from_document(User, found)

    async def operator(self) -> User | None:
        """Return the first active operator."""
        return from_document(
            User, await self._users.find_one({"platformAdmin": True, "active": True}, sort=[("_id", 1)])
        )

    async def insert(self, user: User, session: Session) -> None:
        """Insert a user.

        Raises:
            DuplicateKeyError: the e-mail or the subject is taken.
        """
        await self._users.insert_one(to_document(user), session=session)

    async def add_membership(self, user_id: str, membership: Membership, session: Session) -> None:
        """Give a user a place in a tenant where they had none."""
        await self._users.update_one(
            {"_id": user_id, "memberships.tenantId": {"$ne": membership.tenant_id}},
            {"$push": {"memberships": to_document(membership)}},
            session=session,
        )

    async def remove_memberships(self, tenant_id: str, session: Session) -> None:
        """Take everybody's place in a tenant away."""
        await self._users.update_many(
            {"memberships.tenantId": tenant_id}, {"$pull": {"memberships": {"tenantId": tenant_id}}}, session=session
        )

    async def remove_membership(self, user_id: str, tenant_id: str) -> None:
        """Take a user's place in a tenant away. Repeating it changes nothing."""
        await self._users.update_one({"_id": user_id}, {"$pull": {"memberships": {"tenantId": tenant_id}}})

    async def link(self, user_id: str, subject: str) -> bool:
        """Keep the subject by which Authentik knows a user that had none. Repeating it changes nothing.

        Returns:
            False if the user is linked to another one, or has given this one up; then nothing changes.

        Raises:
            DuplicateKeyError: another user is linked to that subject.
        """
        linkable = {"_id": user_id, "subject": {"$in": [None, subject]}, "formerSubjects": {"$ne": subject}}
        answer = await self._users.update_one(linkable, {"$set": {"subject": subject}})
        return bool(answer.matched_count)

    async def give_up(self, user_id: str, subject: str, tenant_id: str) -> bool:
        """Unlink a subject for good, if the user is nobody but a member of that tenant.

        One conditional write: who is given a place elsewhere before it keeps the subject, who is given one after it
        gets a new one, because `link` refuses this one for ever.

        Returns:
            False if the user is more than that, or is linked to another subject; then nothing changes.
        """
        nobody_else = {
            "_id": user_id,
            "subject": {"$in": [None, subject]},
            "memberships": {"$not": {"$elemMatch": {"tenantId": {"$ne": tenant_id}}}},
            "partnerId": None,
            "platformAdmin": {"$ne": True},
            "auditor": {"$ne": True},
        }
        update = {"$set": {"subject": None}, "$addToSet": {"formerSubjects": subject}}
        answer = await self._users.update_one(nobody_else, update)
        return bool(answer.matched_count)

    async def seed(self, user: User) -> User:
        """Insert a user unless the e-mail exists; what people edited since stays. Returns the stored one."""
        found = await self._users.find_one_and_update(
            {"email": user.email}, {"$setOnInsert": to_document(user)}, upsert=True, return_document=True
        )
        return User.model_validate(found)
